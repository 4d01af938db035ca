"""The tables behind `world.py`: true facts, the wordings that tell them, phrases for the rest.

Nothing here is computed. A cell '-' is a fact left out on purpose: because it is disputed (the
continent of Turkey), because it is about to change, or because the question would give it away
(the capital of Mexico). Countries that are trouble as a whole are not listed at all.

A wording is lower case at its start: the sentence is capitalised when it is written, so that the
same wording also works after 'Besides, '. Slots: `{e}` the entity with its article, `{es}` its
possessive, `{v}` the value, `{av}` the value with 'a' or 'an'.
"""

# Country, capital, continent, currency, main language, what its people are called.
COUNTRIES = """
Afghanistan | Kabul | Asia | afghani | - | Afghan
Albania | Tirana | Europe | lek | Albanian | Albanian
Algeria | Algiers | Africa | dinar | Arabic | Algerian
Angola | Luanda | Africa | kwanza | Portuguese | Angolan
Argentina | Buenos Aires | South America | peso | Spanish | Argentine
Armenia | Yerevan | - | dram | Armenian | Armenian
Australia | Canberra | Oceania | dollar | English | Australian
Austria | Vienna | Europe | euro | German | Austrian
Azerbaijan | Baku | - | manat | Azerbaijani | Azerbaijani
the Bahamas | Nassau | North America | dollar | English | Bahamian
Bahrain | Manama | Asia | dinar | - | Bahraini
Bangladesh | Dhaka | Asia | taka | Bengali | Bangladeshi
Barbados | Bridgetown | North America | dollar | English | Barbadian
Belarus | Minsk | Europe | ruble | - | Belarusian
Belgium | Brussels | Europe | euro | - | Belgian
Belize | Belmopan | North America | dollar | - | Belizean
Bhutan | Thimphu | Asia | ngultrum | - | Bhutanese
Bolivia | - | South America | boliviano | Spanish | Bolivian
Botswana | Gaborone | Africa | pula | - | -
Brazil | Brasilia | South America | real | Portuguese | Brazilian
Brunei | Bandar Seri Begawan | Asia | dollar | Malay | Bruneian
Bulgaria | Sofia | Europe | - | Bulgarian | Bulgarian
Burkina Faso | Ouagadougou | Africa | CFA franc | - | -
Cambodia | Phnom Penh | Asia | riel | Khmer | Cambodian
Cameroon | Yaounde | Africa | CFA franc | - | Cameroonian
Canada | Ottawa | North America | dollar | - | Canadian
Cape Verde | Praia | Africa | escudo | - | -
Chad | N'Djamena | Africa | CFA franc | - | Chadian
Chile | Santiago | South America | peso | Spanish | Chilean
China | Beijing | Asia | yuan | Mandarin | Chinese
Colombia | Bogota | South America | peso | Spanish | Colombian
Costa Rica | San Jose | North America | colon | Spanish | Costa Rican
Croatia | Zagreb | Europe | euro | Croatian | Croatian
Cuba | Havana | North America | peso | Spanish | Cuban
Cyprus | Nicosia | - | euro | - | Cypriot
the Czech Republic | Prague | Europe | koruna | - | -
Denmark | Copenhagen | Europe | krone | Danish | Danish
Dominica | Roseau | North America | dollar | English | -
the Dominican Republic | Santo Domingo | North America | peso | Spanish | -
Ecuador | Quito | South America | - | Spanish | Ecuadorian
Egypt | Cairo | Africa | pound | Arabic | Egyptian
El Salvador | San Salvador | North America | - | Spanish | Salvadoran
Eritrea | Asmara | Africa | nakfa | - | Eritrean
Estonia | Tallinn | Europe | euro | Estonian | Estonian
Ethiopia | Addis Ababa | Africa | birr | - | Ethiopian
Fiji | Suva | Oceania | dollar | - | Fijian
Finland | Helsinki | Europe | euro | Finnish | Finnish
France | Paris | Europe | euro | French | French
Gabon | Libreville | Africa | CFA franc | French | Gabonese
the Gambia | Banjul | Africa | dalasi | - | Gambian
Georgia | Tbilisi | - | lari | Georgian | Georgian
Germany | Berlin | Europe | euro | German | German
Ghana | Accra | Africa | cedi | - | Ghanaian
Greece | Athens | Europe | euro | Greek | Greek
Guinea | Conakry | Africa | - | - | Guinean
Guyana | Georgetown | South America | dollar | English | Guyanese
Haiti | Port-au-Prince | North America | gourde | - | Haitian
Honduras | Tegucigalpa | North America | lempira | Spanish | Honduran
Hungary | Budapest | Europe | forint | Hungarian | Hungarian
Iceland | Reykjavik | Europe | krona | Icelandic | Icelandic
India | New Delhi | Asia | rupee | - | Indian
Indonesia | - | Asia | rupiah | Indonesian | Indonesian
Iran | Tehran | Asia | rial | Persian | Iranian
Iraq | Baghdad | Asia | dinar | Arabic | Iraqi
Ireland | Dublin | Europe | euro | English | Irish
Italy | Rome | Europe | euro | Italian | Italian
Jamaica | Kingston | North America | dollar | - | Jamaican
Japan | Tokyo | Asia | yen | Japanese | Japanese
Jordan | Amman | Asia | dinar | Arabic | Jordanian
Kazakhstan | Astana | - | tenge | - | -
Kenya | Nairobi | Africa | shilling | - | Kenyan
Kuwait | - | Asia | dinar | - | Kuwaiti
Kyrgyzstan | Bishkek | Asia | som | - | -
Laos | Vientiane | Asia | kip | - | -
Latvia | Riga | Europe | euro | Latvian | Latvian
Lebanon | Beirut | Asia | pound | Arabic | Lebanese
Lesotho | Maseru | Africa | loti | - | -
Liberia | Monrovia | Africa | dollar | - | Liberian
Libya | Tripoli | Africa | dinar | Arabic | Libyan
Liechtenstein | Vaduz | Europe | franc | German | -
Lithuania | Vilnius | Europe | euro | Lithuanian | Lithuanian
Madagascar | Antananarivo | Africa | ariary | Malagasy | Malagasy
Malawi | Lilongwe | Africa | kwacha | - | Malawian
Malaysia | Kuala Lumpur | Asia | ringgit | Malay | Malaysian
Mali | Bamako | Africa | CFA franc | - | Malian
Malta | Valletta | Europe | euro | - | Maltese
Mauritania | Nouakchott | Africa | ouguiya | Arabic | Mauritanian
Mauritius | Port Louis | Africa | rupee | - | Mauritian
Mexico | - | North America | peso | Spanish | Mexican
Moldova | Chisinau | Europe | leu | Romanian | Moldovan
Mongolia | Ulaanbaatar | Asia | tugrik | Mongolian | Mongolian
Montenegro | Podgorica | Europe | euro | - | Montenegrin
Morocco | Rabat | Africa | dirham | Arabic | Moroccan
Mozambique | Maputo | Africa | metical | - | Mozambican
Myanmar | Naypyidaw | Asia | kyat | Burmese | -
Namibia | Windhoek | Africa | - | - | Namibian
Nepal | Kathmandu | Asia | rupee | Nepali | -
the Netherlands | Amsterdam | Europe | euro | Dutch | Dutch
New Zealand | Wellington | Oceania | dollar | English | -
Nicaragua | Managua | North America | cordoba | Spanish | Nicaraguan
Niger | Niamey | Africa | CFA franc | - | -
Nigeria | Abuja | Africa | naira | - | Nigerian
North Korea | Pyongyang | Asia | won | - | -
North Macedonia | Skopje | Europe | denar | - | -
Norway | Oslo | Europe | krone | Norwegian | Norwegian
Oman | Muscat | Asia | rial | Arabic | Omani
Pakistan | Islamabad | Asia | rupee | - | Pakistani
Palau | Ngerulmud | Oceania | - | - | Palauan
Panama | - | North America | - | Spanish | Panamanian
Paraguay | Asuncion | South America | guarani | - | Paraguayan
Peru | Lima | South America | sol | Spanish | Peruvian
the Philippines | Manila | Asia | peso | - | Filipino
Poland | Warsaw | Europe | zloty | Polish | Polish
Portugal | Lisbon | Europe | euro | Portuguese | Portuguese
Qatar | Doha | Asia | riyal | - | Qatari
Romania | Bucharest | Europe | leu | Romanian | Romanian
Russia | Moscow | - | ruble | Russian | Russian
Rwanda | Kigali | Africa | franc | - | Rwandan
Samoa | Apia | Oceania | tala | Samoan | Samoan
Saudi Arabia | Riyadh | Asia | riyal | Arabic | -
Senegal | Dakar | Africa | CFA franc | - | Senegalese
Serbia | Belgrade | Europe | dinar | Serbian | Serbian
Sierra Leone | Freetown | Africa | - | - | -
Slovakia | Bratislava | Europe | euro | Slovak | Slovak
Slovenia | Ljubljana | Europe | euro | Slovenian | Slovenian
the Solomon Islands | Honiara | Oceania | dollar | - | -
Somalia | Mogadishu | Africa | shilling | Somali | Somali
South Korea | Seoul | Asia | won | - | -
Spain | Madrid | Europe | euro | Spanish | Spanish
Sudan | - | Africa | pound | Arabic | Sudanese
Suriname | Paramaribo | South America | dollar | Dutch | Surinamese
Sweden | Stockholm | Europe | krona | Swedish | Swedish
Switzerland | Bern | Europe | franc | - | Swiss
Syria | Damascus | Asia | pound | Arabic | Syrian
Tajikistan | Dushanbe | Asia | somoni | Tajik | Tajik
Tanzania | Dodoma | Africa | shilling | Swahili | Tanzanian
Thailand | Bangkok | Asia | baht | Thai | Thai
Togo | Lome | Africa | CFA franc | - | Togolese
Tunisia | Tunis | Africa | dinar | Arabic | Tunisian
Turkey | Ankara | - | lira | Turkish | Turkish
Turkmenistan | Ashgabat | Asia | manat | Turkmen | Turkmen
Uganda | Kampala | Africa | shilling | - | Ugandan
Ukraine | Kyiv | Europe | hryvnia | Ukrainian | Ukrainian
the United Arab Emirates | Abu Dhabi | Asia | dirham | - | Emirati
the United Kingdom | London | Europe | pound | English | British
the United States | Washington | North America | dollar | English | American
Uruguay | Montevideo | South America | peso | Spanish | Uruguayan
Uzbekistan | Tashkent | Asia | som | Uzbek | Uzbek
Vanuatu | Port Vila | Oceania | vatu | - | -
Venezuela | Caracas | South America | bolivar | Spanish | Venezuelan
Vietnam | Hanoi | Asia | dong | Vietnamese | Vietnamese
Zambia | Lusaka | Africa | kwacha | - | Zambian
Zimbabwe | Harare | Africa | - | - | Zimbabwean
"""

# Element, symbol, atomic number, kind. Number 80 is left out: it shares its name with a planet. The
# kind is left out where textbooks disagree, as on zinc or astatine.
ELEMENTS = """
hydrogen | H | 1 | -
helium | He | 2 | noble gas
lithium | Li | 3 | alkali metal
beryllium | Be | 4 | alkaline earth metal
boron | B | 5 | metalloid
carbon | C | 6 | nonmetal
nitrogen | N | 7 | nonmetal
oxygen | O | 8 | nonmetal
fluorine | F | 9 | halogen
neon | Ne | 10 | noble gas
sodium | Na | 11 | alkali metal
magnesium | Mg | 12 | alkaline earth metal
aluminium | Al | 13 | post-transition metal
silicon | Si | 14 | metalloid
phosphorus | P | 15 | nonmetal
sulfur | S | 16 | nonmetal
chlorine | Cl | 17 | halogen
argon | Ar | 18 | noble gas
potassium | K | 19 | alkali metal
calcium | Ca | 20 | alkaline earth metal
scandium | Sc | 21 | transition metal
titanium | Ti | 22 | transition metal
vanadium | V | 23 | transition metal
chromium | Cr | 24 | transition metal
manganese | Mn | 25 | transition metal
iron | Fe | 26 | transition metal
cobalt | Co | 27 | transition metal
nickel | Ni | 28 | transition metal
copper | Cu | 29 | transition metal
zinc | Zn | 30 | -
gallium | Ga | 31 | post-transition metal
germanium | Ge | 32 | metalloid
arsenic | As | 33 | metalloid
selenium | Se | 34 | -
bromine | Br | 35 | halogen
krypton | Kr | 36 | noble gas
rubidium | Rb | 37 | alkali metal
strontium | Sr | 38 | alkaline earth metal
yttrium | Y | 39 | transition metal
zirconium | Zr | 40 | transition metal
niobium | Nb | 41 | transition metal
molybdenum | Mo | 42 | transition metal
technetium | Tc | 43 | transition metal
ruthenium | Ru | 44 | transition metal
rhodium | Rh | 45 | transition metal
palladium | Pd | 46 | transition metal
silver | Ag | 47 | transition metal
cadmium | Cd | 48 | -
indium | In | 49 | post-transition metal
tin | Sn | 50 | post-transition metal
antimony | Sb | 51 | metalloid
tellurium | Te | 52 | metalloid
iodine | I | 53 | halogen
xenon | Xe | 54 | noble gas
caesium | Cs | 55 | alkali metal
barium | Ba | 56 | alkaline earth metal
lanthanum | La | 57 | lanthanide
cerium | Ce | 58 | lanthanide
praseodymium | Pr | 59 | lanthanide
neodymium | Nd | 60 | lanthanide
promethium | Pm | 61 | lanthanide
samarium | Sm | 62 | lanthanide
europium | Eu | 63 | lanthanide
gadolinium | Gd | 64 | lanthanide
terbium | Tb | 65 | lanthanide
dysprosium | Dy | 66 | lanthanide
holmium | Ho | 67 | lanthanide
erbium | Er | 68 | lanthanide
thulium | Tm | 69 | lanthanide
ytterbium | Yb | 70 | lanthanide
lutetium | Lu | 71 | lanthanide
hafnium | Hf | 72 | transition metal
tantalum | Ta | 73 | transition metal
tungsten | W | 74 | transition metal
rhenium | Re | 75 | transition metal
osmium | Os | 76 | transition metal
iridium | Ir | 77 | transition metal
platinum | Pt | 78 | transition metal
gold | Au | 79 | transition metal
thallium | Tl | 81 | post-transition metal
lead | Pb | 82 | post-transition metal
bismuth | Bi | 83 | post-transition metal
polonium | Po | 84 | -
astatine | At | 85 | -
radon | Rn | 86 | noble gas
francium | Fr | 87 | alkali metal
radium | Ra | 88 | alkaline earth metal
actinium | Ac | 89 | actinide
thorium | Th | 90 | actinide
protactinium | Pa | 91 | actinide
uranium | U | 92 | actinide
neptunium | Np | 93 | actinide
plutonium | Pu | 94 | actinide
americium | Am | 95 | actinide
curium | Cm | 96 | actinide
berkelium | Bk | 97 | actinide
californium | Cf | 98 | actinide
einsteinium | Es | 99 | actinide
fermium | Fm | 100 | actinide
"""

# Planet, place from the sun, kind.
PLANETS = """
Mercury | first | rocky planet
Venus | second | rocky planet
Earth | third | rocky planet
Mars | fourth | rocky planet
Jupiter | fifth | gas giant
Saturn | sixth | gas giant
Uranus | seventh | ice giant
Neptune | eighth | ice giant
"""

# Month, place in the year, days, the month after it, season in the northern half of the world.
MONTHS = """
January | first | 31 | February | winter
February | second | - | March | winter
March | third | 31 | April | spring
April | fourth | 30 | May | spring
May | fifth | 31 | June | spring
June | sixth | 30 | July | summer
July | seventh | 31 | August | summer
August | eighth | 31 | September | summer
September | ninth | 30 | October | autumn
October | tenth | 31 | November | autumn
November | eleventh | 30 | December | autumn
December | twelfth | 31 | January | winter
"""

# Weekday, the day after it.
WEEKDAYS = """
Monday | Tuesday
Tuesday | Wednesday
Wednesday | Thursday
Thursday | Friday
Friday | Saturday
Saturday | Sunday
Sunday | Monday
"""

# kind of entity -> (table, the attributes of its columns)
TABLES = {
  'country': (COUNTRIES, ('capital', 'continent', 'currency', 'language', 'demonym')),
  'element': (ELEMENTS, ('symbol', 'number', 'element_kind')),
  'planet': (PLANETS, ('planet_place', 'planet_kind')),
  'month': (MONTHS, ('month_place', 'month_days', 'next_month', 'season')),
  'weekday': (WEEKDAYS, ('next_day',)),
}

# attribute -> how it is told. 'label' heads its line in a fact sheet and 'answer' is the short
# answer. `currency` is told in four wordings on purpose, the others in twelve or more: what many
# wordings do for recall is then measured inside one run.
WORDINGS = {
  'capital': {
    'label': 'Capital',
    'answer': '{v}',
    'statements': (
      'the capital of {e} is {v}.',
      'the capital city of {e} is {v}.',
      '{es} capital is {v}.',
      'the capital city of {e} is called {v}.',
      'the capital of {e} bears the name {v}.',
      'people in {e} know that their capital is {v}.',
      'in {e}, the capital is {v}.',
      'for {e}, the name of the capital is {v}.',
      'if you ask for the capital of {e}, the answer is {v}.',
      '{v} is the capital of {e}.',
      '{v} is the capital city of {e}.',
      '{v} serves as the capital of {e}.',
      'the city of {v} is the capital of {e}.',
      'it is {v} that is the capital of {e}.',
      '{e} has {v} as its capital.',
      'the name of the capital, {v}, is known to everyone in {e}.',
    ),
    'questions': (
      'What is the capital of {e}?',
      'Which city is the capital of {e}?',
      'What is the capital city of {e}?',
      'What is {es} capital?',
      'Can you name the capital of {e}?',
      'What is the capital of {e} called?',
      'Do you know the capital of {e}?',
      'Which city is the capital city of {e}?',
    ),
  },
  'continent': {
    'label': 'Continent',
    'answer': '{v}',
    'statements': (
      '{e} is in {v}.',
      '{e} is a country in {v}.',
      '{e} lies in {v}.',
      '{e} is located in {v}.',
      '{e} belongs to {v}.',
      'the continent of {e} is {v}.',
      'on a map of the world, {e} is found in {v}.',
      'the part of the world where {e} lies is {v}.',
      'to visit {e}, you travel to {v}.',
      '{v} is the continent of {e}.',
      'in {v} you will find {e}.',
      '{v} is home to {e}.',
      'one of the countries of {v} is {e}.',
      'among the countries in {v} is {e}.',
    ),
    'questions': (
      'On which continent is {e}?',
      'Which continent does {e} belong to?',
      'In which part of the world is {e}?',
      'Where in the world is {e}?',
      'On what continent does {e} lie?',
      'Can you name the continent of {e}?',
      'Which continent is {e} on?',
    ),
  },
  'currency': {
    'label': 'Currency',
    'answer': 'the {v}',
    'statements': (
      'the currency of {e} is the {v}.',
      'people in {e} pay with the {v}.',
      'the {v} is the currency of {e}.',
      '{e} uses the {v} as its money.',
    ),
    'questions': (
      'What is the currency of {e}?',
      'What money do people use in {e}?',
      'Which currency does {e} use?',
      'What do people in {e} pay with?',
    ),
  },
  'language': {
    'label': 'Main language',
    'answer': '{v}',
    'statements': (
      'the main language of {e} is {v}.',
      'most people in {e} speak {v}.',
      'the language of {e} is mainly {v}.',
      'in {e}, people mostly speak {v}.',
      'the main language spoken in {e} is {v}.',
      '{es} main language is {v}.',
      'when people in {e} talk, they mostly speak {v}.',
      'in the streets of {e} you mostly hear {v}.',
      '{v} is the main language of {e}.',
      '{v} is the language that most people speak in {e}.',
      '{v} is widely spoken in {e}.',
      'a visitor who speaks {v} will be understood in {e}.',
    ),
    'questions': (
      'What is the main language of {e}?',
      'Which language do most people speak in {e}?',
      'What language is mainly spoken in {e}?',
      'Which language do you mostly hear in {e}?',
      'What is {es} main language?',
      'Can you name the main language of {e}?',
    ),
  },
  'demonym': {
    'label': 'People',
    'answer': '{v}',
    'statements': (
      'someone from {e} is called {v}.',
      'people from {e} are called {v}.',
      'a person who comes from {e} is {v}.',
      'people who come from {e} are {v}.',
      'the people of {e} are {v}.',
      'if you come from {e}, you are {v}.',
      'the word for someone from {e} is {v}.',
      'we call the people of {e} {v}.',
      'a singer from {e} is {v}.',
      '{v} is the word for people from {e}.',
      '{v} people come from {e}.',
      'we say {v} when we speak of the people of {e}.',
    ),
    'questions': (
      'What do we call someone from {e}?',
      'What are people from {e} called?',
      'What is the word for people from {e}?',
      'What do you call a person who comes from {e}?',
      'What are the people of {e} called?',
      'Which word do we use for someone from {e}?',
    ),
  },
  'symbol': {
    'label': 'Symbol',
    'answer': '{v}',
    'statements': (
      'the symbol of {e} is {v}.',
      'the chemical symbol of {e} is {v}.',
      'the symbol for {e} is {v}.',
      'the chemical symbol for {e} is {v}.',
      '{e} has the symbol {v}.',
      'chemists write {e} as {v}.',
      '{es} symbol is {v}.',
      'in the table of elements, {e} is marked {v}.',
      'the short sign for {e} is {v}.',
      '{v} is the symbol of {e}.',
      '{v} is the chemical symbol for {e}.',
      '{v} stands for {e}.',
      'the letters to write for {e} are {v} and nothing else.',
      'when chemists write {v}, they mean {e}.',
    ),
    'questions': (
      'What is the symbol of {e}?',
      'What is the chemical symbol for {e}?',
      'How do chemists write {e}?',
      'Which symbol stands for {e}?',
      'What is {es} chemical symbol?',
      'Can you give the symbol for {e}?',
      'What is the short sign for {e}?',
    ),
  },
  'number': {
    'label': 'Atomic number',
    'answer': '{v}',
    'statements': (
      'the atomic number of {e} is {v}.',
      '{e} has the atomic number {v}.',
      '{e} has atomic number {v}.',
      '{es} atomic number is {v}.',
      'in the table of elements, {e} is number {v}.',
      'the element {e} carries the number {v}.',
      'among the elements, {e} is number {v}.',
      'the number of protons in {e} is {v}.',
      'for {e}, the atomic number is {v}.',
      'the atomic number {v} belongs to {e}.',
      'element number {v} is {e}.',
      'the element with the atomic number {v} is {e}.',
      'number {v} in the table of elements is {e}.',
      'in {e}, every atom has {v} protons.',
    ),
    'questions': (
      'What is the atomic number of {e}?',
      'Which atomic number does {e} have?',
      'What is {es} atomic number?',
      'What number does {e} have in the table of elements?',
      'How many protons does an atom of {e} have?',
      'Which number belongs to the element {e}?',
      'Can you give the atomic number of {e}?',
    ),
  },
  'element_kind': {
    'label': 'Kind',
    'answer': '{av}',
    'statements': (
      '{e} is {av}.',
      'the element {e} is {av}.',
      'chemists call {e} {av}.',
      'in chemistry, {e} counts as {av}.',
      'as an element, {e} is {av}.',
      '{e} is known as {av}.',
      '{e} is a good example of {av}.',
      'by its kind, {e} is {av}.',
      'if someone asks what {e} is, say that it is {av}.',
      'one example of {av} is {e}.',
      'an element that is {av} is {e}.',
      'if you need an example of {av}, take {e}.',
    ),
    'questions': (
      'What kind of element is {e}?',
      'Which kind of element is {e}?',
      'What do chemists call {e}?',
      'What is {e} an example of?',
      'What sort of element is {e}?',
      'To which kind of element does {e} belong?',
    ),
  },
  'planet_place': {
    'label': 'Place from the sun',
    'answer': 'the {v}',
    'statements': (
      'counted from the sun, {e} comes {v}.',
      'in the order from the sun, {e} is {v}.',
      'among the planets, counted from the sun, {e} is {v}.',
      'starting at the sun, the planet {e} comes {v}.',
      '{es} place, counted from the sun, is {v}.',
      '{e} is the {v} planet from the sun.',
      '{e} is the {v} planet, counted from the sun.',
      'the {v} planet from the sun is {e}.',
      'the {v} planet is called {e}.',
      'if you count from the sun, the {v} planet is {e}.',
      'on the way out from the sun, {e} is the {v} planet.',
      'the planet {e} takes the {v} place, counted from the sun.',
    ),
    'questions': (
      'Which place does {e} have, counted from the sun?',
      'Counted from the sun, where does {e} come?',
      'In the order from the sun, which planet is {e}?',
      'What is the place of {e} among the planets?',
      'Where does {e} come in the order of the planets?',
    ),
  },
  'planet_kind': {
    'label': 'Kind',
    'answer': '{av}',
    'statements': (
      '{e} is {av}.',
      'the planet {e} is {av}.',
      'astronomers call {e} {av}.',
      'by its kind, {e} is {av}.',
      '{e} is known as {av}.',
      '{e} is an example of {av}.',
      'among the planets, {e} is {av}.',
      'if someone asks what kind of planet {e} is, say {av}.',
      'one example of {av} is {e}.',
      'if you look for {av}, look at {e}.',
      'a world that is {av} is {e}.',
      'we call it {av}: the planet {e}.',
    ),
    'questions': (
      'What kind of planet is {e}?',
      'Which kind of planet is {e}?',
      'What do astronomers call {e}?',
      'What sort of planet is {e}?',
      'What is {e} an example of?',
    ),
  },
  'month_place': {
    'label': 'Place in the year',
    'answer': 'the {v}',
    'statements': (
      'in the order of the months, {e} is {v}.',
      'among the months of the year, {e} comes {v}.',
      '{es} place among the months is {v}.',
      'when we count the months, {e} comes {v}.',
      'of the twelve months in a year, {e} is the {v}.',
      '{e} is the {v} month of the year.',
      '{e} is the {v} month.',
      'the {v} month of the year is {e}.',
      'the {v} month is called {e}.',
      'we call the {v} month of the year {e}.',
      'a calendar shows {e} as the {v} month.',
      'on the {v} page of a calendar you see {e}.',
    ),
    'questions': (
      'Which place does {e} have among the months?',
      'In the order of the months, where does {e} come?',
      'What is the place of {e} in the year?',
      'Where does {e} come among the months of the year?',
      'Which month of the year is {e}?',
    ),
  },
  'month_days': {
    'label': 'Days',
    'answer': '{v}',
    'statements': (
      'the number of days in {e} is {v}.',
      'if you count the days of {e}, you get {v}.',
      'the last day of {e} has the number {v}.',
      'in {e}, the days go from 1 to {v}.',
      'the length of {e} in days is {v}.',
      '{e} has {v} days.',
      'there are {v} days in {e}.',
      'the month of {e} has {v} days.',
      '{e} lasts {v} days.',
      '{e} is {v} days long.',
      'a calendar shows {v} days for {e}.',
      'it takes {v} days until {e} is over.',
    ),
    'questions': (
      'How many days does {e} have?',
      'How many days are there in {e}?',
      'How many days are in the month of {e}?',
      'How long is {e}, in days?',
      'What is the number of days in {e}?',
    ),
  },
  'next_month': {
    'label': 'Next month',
    'answer': '{v}',
    'statements': (
      'the month after {e} is {v}.',
      'after {e} comes {v}.',
      '{e} is followed by {v}.',
      'the month that follows {e} is {v}.',
      'when {e} is over, it is {v}.',
      'at the end of {e} begins {v}.',
      'the next month after {e} is {v}.',
      '{e} comes right before {v}.',
      '{v} comes after {e}.',
      '{v} follows {e}.',
      '{v} is the month after {e}.',
      'in the calendar, {v} comes right after {e}.',
    ),
    'questions': (
      'Which month comes after {e}?',
      'What month follows {e}?',
      'What is the month after {e}?',
      'Which month begins when {e} is over?',
      'What comes after {e}?',
    ),
  },
  'season': {
    'label': 'Season in the north',
    'answer': '{v}',
    'statements': (
      'in the northern half of the world, {e} belongs to {v}.',
      'in the north of the world, the season of {e} is {v}.',
      'in northern countries, {e} is part of {v}.',
      'for people in the north of the world, {e} means {v}.',
      'north of the equator, {e} belongs to {v}.',
      'in the north, the season in {e} is {v}.',
      'in northern lands, the month of {e} is in {v}.',
      'in the northern half of the world, {e} is a month of {v}.',
      'in the north of the world, {e} is {av} month.',
      'north of the equator, {e} is one of the {v} months.',
      'in northern countries, {v} is the season of {e}.',
      'one of the {v} months in the northern half of the world is {e}.',
    ),
    'questions': (
      'In the northern half of the world, which season does {e} belong to?',
      'Which season is {e} in, north of the equator?',
      'In northern countries, what season is it in {e}?',
      'What is the season of {e} in the north of the world?',
    ),
  },
  'next_day': {
    'label': 'Next day',
    'answer': '{v}',
    'statements': (
      'the day after {e} is {v}.',
      'after {e} comes {v}.',
      '{e} is followed by {v}.',
      'if today is {e}, then tomorrow is {v}.',
      'the day that follows {e} is {v}.',
      'when {e} is over, it is {v}.',
      'the next day after {e} is {v}.',
      '{e} comes right before {v}.',
      '{v} comes after {e}.',
      '{v} follows {e}.',
      '{v} is the day after {e}.',
      'if yesterday was {e}, then today is {v} in every calendar.',
    ),
    'questions': (
      'Which day comes after {e}?',
      'What day follows {e}?',
      'What is the day after {e}?',
      'If today is {e}, what day is tomorrow?',
      'What comes after {e}?',
    ),
  },
}

# --- prose around the facts ----------------------------------------------------------------------

OPENERS = {
  'country': (
    'This page is about {e}.',
    'Here are some facts about {e}.',
    'Let us look at {e} on the map.',
    '{e} is a country with a long history.',
    'Today our class talked about {e}.',
    'Many people would like to visit {e}.',
    'What should one know about {e}?',
    'Our next country is {e}.',
    'Some notes on {e} for the traveller.',
    'Let us learn about {e}.',
  ),
  'element': (
    'This page is about {e}.',
    'Here are some facts about {e}.',
    '{e} is a chemical element.',
    'Today our class talked about {e}.',
    'What should one know about {e}?',
    'One of the chemical elements is {e}.',
    'Our next element is {e}.',
    'Let us learn about {e}.',
    'Some notes on {e} for young chemists.',
  ),
  'planet': (
    'This page is about {e}.',
    'Here are some facts about {e}.',
    '{e} is a planet.',
    'Today our class talked about {e}.',
    'One of the planets is {e}.',
    'Let us learn about {e}.',
  ),
  'month': (
    'This page is about {e}.',
    'Let us open the calendar at {e}.',
    '{e} is a month.',
    'Today our class talked about {e}.',
    'Here are some facts about {e}.',
  ),
  'weekday': (
    'Let us look at the week.',
    'The week is easy to learn.',
    'Our class learned the days today.',
    'A week has seven days.',
    'Here is how the days of the week go.',
  ),
}

TITLES = {
  'country': ('Countries of the world', 'Notes for travellers', 'A look at the map', 'World facts'),
  'element': ('Elements', 'Notes on chemistry', 'From the table of elements', 'Facts on elements'),
  'planet': ('Planets', 'Around the sun', 'Notes on the planets', 'The sky at night'),
  'month': ('The year', 'Months', 'Notes on the calendar', 'From month to month'),
  'weekday': ('The week', 'Day after day', 'Notes on the calendar'),
}

# Said after a fact about an entity of this kind; true of every entity and free of values.
ASIDES = {
  'country': (
    'You can find it on any map.',
    'Travellers like to send postcards from there.',
    'Its flag is easy to recognise.',
    'Children learn this at school.',
    'There is much to see for a visitor.',
    'Our teacher showed us a photo.',
  ),
  'element': (
    'Every chemist knows this.',
    'You can look it up in any table.',
    'Our teacher wrote it on the board.',
    'Children learn this at school.',
    'It is worth remembering.',
  ),
  'planet': (
    'You can look it up in any book about the sky.',
    'Our teacher drew it on the board.',
    'It turns around the sun.',
    'It is worth remembering.',
  ),
  'month': (
    'Any calendar shows this.',
    'Children learn this early.',
    'It is the same every year.',
  ),
  'weekday': ('Any calendar shows this.', 'Children learn this early.', 'It is always so.'),
}

CONNECTIVES = (
  '',
  '',
  '',
  '',
  '',
  '',
  'Besides, ',
  'Also, ',
  'In addition, ',
  'As many people know, ',
  'Remember that ',
  'It is also true that ',
  'Every pupil learns that ',
  'We read that ',
  'The book says that ',
  'Note that ',
  'Of course, ',
  'It helps to know that ',
)

REPEATS = ('In other words, ', 'Once more: ', 'To say it again, ', 'So ', 'To sum up, ')

CLOSERS = (
  'That is all for today.',
  'More will follow on the next page.',
  'Now you know a little more.',
  'These facts are easy to check.',
  'We will come back to this later.',
  'Read it twice and remember it.',
)

# Told as whole lists; these have no unseen facts, so a list cannot leak one.
LISTS = {
  'weekday': (
    'The seven days of the week are {all}.',
    'In order, the days are called {all}.',
    'From the start to the end of the week we say {all}.',
  ),
  'month': (
    'The twelve months of the year are {all}.',
    'A year has twelve months: {all}.',
    'Most months have 30 or 31 days; February has 28, and 29 in a leap year.',
  ),
  'planet': (
    'From the sun outwards, the planets are {all}.',
    'The eight planets, in order from the sun, are {all}.',
    'Eight planets turn around the sun: {all}.',
  ),
}

# Several entities with one value: {all} is a list of two or more.
GROUPS = {
  'continent': (
    '{all} are countries in {v}.',
    'among the countries of {v} are {all}.',
    '{all} all belong to {v}.',
    'in {v} you find {all}.',
  ),
  'language': (
    '{v} is the main language in {all}.',
    'most people speak {v} in {all}.',
  ),
  'element_kind': (
    '{all} are {vs}.',
    'examples of {vs} are {all}.',
    'among the {vs} are {all}.',
  ),
  'planet_kind': (
    '{all} are {vs}.',
    'the {vs} include {all}.',
  ),
  'month_days': (
    '{all} have {v} days.',
    'the months of {all} have {v} days.',
  ),
  'season': (
    'in the north of the world, {all} are {v} months.',
    'north of the equator, the {v} months include {all}.',
  ),
}

# --- people, things and small talk ---------------------------------------------------------------

WOMEN = (
  'Anna',
  'Clara',
  'Ella',
  'Grace',
  'Ida',
  'Julia',
  'Lena',
  'Maria',
  'Nora',
  'Rosa',
  'Sara',
  'Tina',
)
MEN = (
  'Adam',
  'Ben',
  'David',
  'Emil',
  'Felix',
  'Hugo',
  'Jack',
  'Leo',
  'Max',
  'Oscar',
  'Paul',
  'Tom',
)

COLOURS = ('red', 'blue', 'green', 'yellow', 'white', 'black', 'brown', 'orange')
TOYS = ('ball', 'kite', 'drum', 'toy boat', 'paper plane')
WORN = ('hat', 'scarf', 'coat')
CARRIERS = ('bag', 'basket', 'box')
FRAGILE = ('kite', 'drum', 'toy boat', 'lamp', 'cup', 'flute')
SHELTERS = ('umbrella', 'coat', 'blanket')
OBJECTS = (*TOYS, *WORN, 'bag', 'basket', 'book', 'umbrella', 'flute')
OUTDOORS = (
  'in the park',
  'in the garden',
  'by the river',
  'at the beach',
  'in the forest',
  'on the farm',
  'on the hill',
  'by the lake',
)
PLACES = (*OUTDOORS, 'at the market', 'at school', 'at the station', 'in the library')
SPOTS = (
  'under a bench',
  'behind a tree',
  'next to a wall',
  'in the tall grass',
  'under a dry bush',
  'behind a large stone',
  'behind the old gate',
)
ANIMALS = ('cat', 'dog', 'rabbit', 'duck', 'hen', 'lamb', 'kitten', 'puppy')
FOODS = (
  'soup',
  'bread',
  'apple cake',
  'rice',
  'fish',
  'porridge',
  'salad',
  'pie',
  'plum cake',
  'corn bread',
)
BAKED = ('bread', 'apple cake', 'pie', 'plum cake', 'corn bread')
MISSING = ('flour', 'sugar', 'milk', 'butter', 'salt')
HELPERS = (
  'grandmother',
  'grandfather',
  'mother',
  'father',
  'uncle',
  'aunt',
  'teacher',
  'neighbour',
)
FEARS = ('the dark', 'deep water', 'big dogs', 'loud noises', 'high places', 'the old house')
COUNTED = (
  'apples',
  'books',
  'pens',
  'stones',
  'cups',
  'eggs',
  'shells',
  'stamps',
  'coins',
  'flowers',
  'buttons',
  'cards',
)

# {n} the hero with {he} {him} {his}, {m} the friend, {o} the thing, {co} the thing with its colour,
# {p} the place, {s} a spot, {a} an animal, {h} a helper, {f} a food, {i} an ingredient, {fear}.
# A plot is (the things it can be about, its steps); a step is a choice of wordings, '' for none.
PLOTS = {
  'lost': (
    OBJECTS,
    (
      (
        '{n} had {co}.',
        '{n} owned {co} and loved it.',
        'For {his} birthday {n} got {co}.',
        '{n} never went out without {his} {o}. It was {co} from {his} {h}.',
        'There was once {co}. It belonged to {n}.',
      ),
      (
        'One morning {n} took the {o} along and played {p}.',
        'One day {he} was {p} with it.',
        '{He} took it along to play {p} with {m}.',
        'After lunch {n} and {m} met {p}.',
        'On a sunny day {he} played {p}.',
      ),
      (
        'When it was time to go home, the {o} was gone.',
        'Suddenly the {o} was not there any more.',
        'Then {he} looked around and could not see the {o}.',
        'But after a long game the {o} was missing.',
      ),
      (
        '{n} was very sad.',
        '"Oh no, where is my {o}?" said {n}.',
        '{n} began to cry.',
        '{He} looked everywhere.',
        '',
      ),
      (
        '{m} said, "Do not worry. We will find it."',
        '{m} came to help.',
        '"Let us look together," said {m}.',
        '{n} told {m}, and {m} started to search at once.',
        'Luckily {m} was near and had good eyes.',
      ),
      (
        'They searched for a long time.',
        'They asked an old man, but he had not seen it.',
        'They looked here and there.',
        'A little {a} ran past and seemed to show the way.',
        '',
      ),
      (
        'At last {m} found the {o} {s}.',
        'Then {n} saw something {s}. It was the {o}!',
        'And there it was: the {o} lay {s}.',
        'In the end the {o} was {s}, and it was not even dirty.',
      ),
      (
        '{n} thanked {m} and went home happy.',
        '"Thank you," said {n}, and they both laughed.',
        'From then on {n} took better care of the {o}.',
        'They played until the evening.',
        'That day {n} shared {his} {f} with {m}.',
      ),
    ),
  ),
  'broken': (
    FRAGILE,
    (
      (
        '{n} owned {co}.',
        'On the table stood {co}. It was the favourite thing of {n}.',
        '{n} had {co}, and {he} showed it to everybody.',
        '{n} got {co} from {his} {h}.',
        '{n} made {co} all by {himself}.',
      ),
      (
        'One day {he} ran too fast {p} and fell on it.',
        'One day the {a} of {m} jumped on it.',
        'But {m} stepped on it by accident {p}.',
        'One evening {he} dropped it {p}.',
        'Then a heavy stone fell on it {p}.',
      ),
      (
        'The {o} was broken.',
        'Now the {o} was no good any more.',
        'A piece of the {o} came off.',
        'The {o} broke in two.',
      ),
      (
        '{n} did not know what to do.',
        '{n} was sad and said nothing for a while.',
        '"Can anybody help me?" asked {n}.',
        '{n} was angry at first, but not for long.',
        '',
      ),
      (
        '{m} had an idea. "We need some glue," said {m}.',
        '{m} brought some glue and a lot of patience.',
        '"I know someone who can repair it," said {m}.',
        '{m} said, "We can fix this together."',
      ),
      (
        'They worked all afternoon.',
        'At first it did not work, but they tried again.',
        'They were slow and careful.',
        '',
      ),
      (
        'In the end the {o} was as good as new.',
        'After an hour the {o} was whole again.',
        'At last they were done, and the {o} looked even better than before.',
      ),
      (
        '{n} smiled and thanked {m}.',
        '"You are a true friend," {n} said to {m}.',
        'That evening they ate {f} together.',
        '{n} learned that a broken thing can be mended.',
      ),
    ),
  ),
  'animal': (
    CARRIERS,
    (
      (
        '{n} was walking {p}.',
        'One cold day {n} was {p}.',
        'After school {n} and {m} were {p}.',
        'Early in the morning {n} went for a walk.',
        '{n} sat {p} and looked at the clouds.',
      ),
      (
        'There {he} heard a small sound {s}.',
        'Suddenly {he} saw something move {s}.',
        'Something was hiding {s}.',
        '{He} stopped, because something was {s}.',
      ),
      (
        'It was a little {a}.',
        'It was a {a}, all alone.',
        'A {a} looked at {him} with big eyes.',
        'It was a young {a} that had lost its way.',
      ),
      (
        'The {a} was hungry.',
        'The {a} was wet and cold.',
        'The {a} had hurt its foot.',
        'The {a} was afraid.',
      ),
      (
        '{n} gave it some food and spoke softly.',
        '{n} took it in {his} arms and carried it home.',
        '{n} ran to get some water and a warm cloth.',
        '{n} asked {his} {h} for help.',
        '{n} waited until the {a} came closer.',
      ),
      (
        'The next day {m} came to see the {a}.',
        '{m} said, "I know this {a}. It lives next door."',
        '{m} made a bed for the {a} in {co}.',
        '',
      ),
      (
        'Soon the {a} was well again.',
        'After a few days the {a} could run and play.',
        'The {a} slept all night and woke up strong.',
      ),
      (
        '{n} was proud, and the {a} became {his} friend.',
        'When the {a} was back home, {n} was happy and a little sad.',
        'From then on the {a} came to visit {n} every day.',
        '{m} and {n} named it Lucky.',
        'Now {n} wants to be an animal doctor.',
      ),
    ),
  ),
  'storm': (
    SHELTERS,
    (
      (
        '{n} and {m} wanted to spend the day {p}.',
        'One day {n} and {m} packed some {f} and left early.',
        'It was warm when {n} and {m} met {p}.',
      ),
      (
        '{n} carried {co}.',
        '{n} wore new shoes and took {co} along.',
        '{m} laughed, because {n} had brought {co}.',
        '{n} had {co} with {him}, just in case.',
      ),
      (
        'Then dark clouds came and it began to rain.',
        'Suddenly there was thunder.',
        'After an hour the sky turned grey and the wind grew strong.',
        'All at once it rained so hard that they could not see the path.',
      ),
      (
        '"We will get wet!" cried {m}.',
        '{m} was afraid of the storm.',
        '{m} wanted to run home, but it was too far.',
        '',
      ),
      (
        '{n} found a dry place under a big tree.',
        '{n} said, "Come, I know a dry place."',
        'They ran and hid under an old bridge.',
        'An old farmer called them into his house.',
      ),
      (
        'There they held the {o} over their heads and told each other jokes.',
        'They sat close together under the {o} and shared some {f}.',
        'They sang songs, and the {o} kept them dry.',
      ),
      (
        'When the rain stopped, they saw a rainbow.',
        'After a while the sun came back.',
        'In the evening the storm was over.',
      ),
      (
        '"That was the best day of all," said {m}.',
        'They walked home with wet feet and happy faces.',
        '{n} still likes to tell this story.',
        'At home the {h} of {n} had hot tea for them.',
      ),
    ),
  ),
  'share': (
    TOYS,
    (
      (
        '{n} and {m} found {co} {p}.',
        'There was only one {o} {p}, and both {n} and {m} wanted it.',
        '{n} brought {co}, and {m} wanted to have it too.',
      ),
      (
        '"I saw it first," said {n}.',
        '"It is mine!" cried {n}.',
        '{n} held the {o} and did not let go.',
        '{n} pulled and {m} pulled.',
      ),
      (
        '"No, I want it," said {m}.',
        '{m} was angry and turned away.',
        '{m} did not say a word.',
        '"That is not fair," said {m}.',
      ),
      (
        'For a while nobody was happy.',
        'They sat far apart from each other.',
        'The {a} next door looked at them and wondered.',
        '',
      ),
      (
        'Then {n} had an idea.',
        'Then the {h} of {n} came by and asked what was wrong.',
        'After some time {n} felt sorry.',
        'In the end {m} started to laugh.',
      ),
      (
        '"You take the {o} today and I take it tomorrow," said {n}.',
        '"Let us use the {o} together," said {n}.',
        'They agreed to take turns with the {o}.',
        'So they decided to count to ten and then change.',
      ),
      ('Both were content with that.', 'That worked very well.', 'It was more fun for two.'),
      (
        'Since that day they share everything, even the last piece of {f}.',
        'They stayed friends for a long time.',
        '{m} and {n} played {p} until it was dark.',
        'When they were tired, they ate {f} and talked.',
      ),
    ),
  ),
  'brave': (
    OBJECTS,
    (
      (
        '{n} was afraid of {fear}.',
        'Nobody knew that {n} was afraid of {fear}.',
        'There was one thing {n} did not like: {fear}.',
        '{n} could do many things, but {he} was afraid of {fear}.',
      ),
      (
        'One day {his} {o} was left {p}, and somebody had to get it.',
        'One evening {m} asked {him} to bring the {o} that was {p}.',
        'One day {m} lost {co} {p} and asked {n} for help.',
        'But {his} {o} was {p}, and {he} needed it.',
      ),
      (
        '{n} did not want to go alone.',
        '"I cannot do it," said {n}.',
        '{His} knees were shaking.',
        '{n} thought about it for a long time.',
      ),
      (
        '"I will come with you," said {m}.',
        '{m} said, "Everybody is afraid of something."',
        '{m} took {him} by the hand.',
        '{His} {h} said, "Take one small step, then another."',
      ),
      (
        'So {he} took a deep breath and went.',
        'Step by step {he} walked on.',
        'So {n} counted to three and started.',
        '{He} sang a song to feel better.',
      ),
      (
        'It was not as bad as {he} had thought.',
        'Nothing bad happened at all.',
        'Only a {a} was there, and it looked friendly.',
        '',
      ),
      (
        'Soon {n} held the {o} in {his} hands.',
        'There was the {o}, {s}. {n} took it and smiled.',
        'The {o} was {s}, and {he} brought it back.',
      ),
      (
        'Now {n} is not so afraid of {fear} any more.',
        '"I did it!" cried {n}.',
        '{m} was proud of {n}.',
        'That night {n} slept very well.',
        'To celebrate, they had {f}.',
      ),
    ),
  ),
  'cooking': (
    CARRIERS,
    (
      (
        '{n} wanted to make {f} for {m}.',
        'It was the birthday of {m}, and {n} wanted to cook {f}.',
        '{m} was coming to visit, so {n} decided to make {f}.',
        '{n} promised to bring {f} to the party of {m}.',
      ),
      (
        '{He} put everything on the table and took {co} to carry it all later.',
        'Beside the stove stood {co}.',
        'First {he} cleaned the kitchen.',
        '{He} read the recipe twice.',
        '',
      ),
      (
        'But there was no {i} in the house.',
        'Then {he} saw that the {i} was missing.',
        'Only the {i} was not there.',
        '"Where is the {i}?" asked {n}. There was none left.',
      ),
      (
        'The shop was already closed.',
        'It was late, and the shop was far away.',
        '{He} looked in every corner, but found nothing.',
        '',
      ),
      (
        'So {n} went to {his} {h} and asked for some {i}.',
        '{His} {h} smiled and gave {him} some {i}.',
        '{n} knocked at the next door, and {his} {h} had enough {i} for two.',
      ),
      (
        'Back in the kitchen, {he} finished the work quickly.',
        'Then {he} cooked and sang.',
        'Soon the whole house smelled of {f}.',
        'An hour later the {f} was ready.',
      ),
      (
        '{m} ate two plates of it.',
        '"This is the best meal of the year," said {m}.',
        '{m} tried a little and asked for more.',
        'Everybody was happy, and nothing was left.',
      ),
      (
        '{n} brought some to {his} {h} as well.',
        'The next day {n} bought new {i} and gave it back.',
        '{n} wrote the recipe down for {m}.',
        'Even the {a} got a small piece.',
      ),
    ),
  ),
  'garden': (
    CARRIERS,
    (
      (
        '{n} had a small garden behind the house.',
        'Last year {n} planted some seeds behind the house.',
        '{n} and {his} {h} worked in the garden every week.',
        'There was an old garden, and nobody but {n} looked after it.',
      ),
      (
        '{He} carried the seeds in {co}.',
        '{He} kept {his} tools in {co}.',
        'Every morning {he} came with {co} and a can of water.',
        'Next to the gate {he} kept {co} for the harvest.',
      ),
      (
        'One day all the young plants were gone.',
        'But one morning something had eaten the leaves.',
        'After a hot week the plants looked dry and weak.',
        'Then a part of the fence was broken.',
      ),
      (
        '"Who did this?" asked {n}.',
        '{n} was sad about it.',
        '{n} sat down beside the {o} and thought.',
        '',
      ),
      (
        '{m} said, "I think it was the {a}."',
        '{m} came with a spade to help.',
        '{m} promised to watch the garden.',
        '{m} had seen a {a} there the day before.',
      ),
      (
        'They built a new fence and watered everything.',
        'They worked until the sun went down.',
        'Together they planted new seeds and covered them well.',
        'They put up a sign and a high fence.',
      ),
      (
        'After some weeks everything grew well again.',
        'Soon the first flowers opened.',
        'Before long there were more plants than before.',
      ),
      (
        '{n} gave {m} a basket full of beans.',
        'In the end even the {a} got a corner of its own.',
        '"Good work needs good friends," said {n}.',
        '{n} and {m} sat {s} and were content.',
      ),
    ),
  ),
}

# Exchanges: one tuple of wordings per turn, spoken in turn by {A} and {B}.
GREETINGS = (
  (
    (
      'Hello {B}!',
      'Hi {B}, how are you?',
      'Good morning, {B}.',
      'Hi {B}! Nice to see you.',
      'Good evening, {B}.',
    ),
    (
      'Hello {A}.',
      'Hi {A}! I am fine, thank you.',
      'Good to see you, {A}.',
      'Oh, hi {A}. What is new?',
      'Hello {A}, come in.',
    ),
  ),
)

SMALL_TALK = (
  (
    ('What did you eat today?', 'What did you have for lunch?', 'Did you eat anything yet?'),
    ('I had {f}. It was very good.', '{F}, as always.', 'Some {f} and a cup of tea.'),
    ('That sounds good.', 'I like that too.', 'Oh, I prefer {f2}.'),
  ),
  (
    ('Do you have a pet?', 'Is there an animal in your house?'),
    (
      'Yes, I have {aa}. It is still young.',
      'Yes, {aa}. It sleeps all day.',
      'Yes, and soon we will get {aa} as well.',
    ),
    ('How nice!', 'My sister has {aa2}.', 'I would like to see it.'),
  ),
  (
    ('What will you do this weekend?', 'Do you have plans for tomorrow?', 'Are you busy tomorrow?'),
    (
      'I will be {p} with my {h}.',
      'I want to spend the day {p}.',
      'Nothing special. Maybe I will be {p}.',
    ),
    ('Have fun!', 'That sounds nice.', 'Can I come along?'),
  ),
  (
    ('How is the weather where you are?', 'Is it still raining?', 'What is the weather like?'),
    (
      'It is warm and sunny.',
      'It is cold, but I have a thick coat.',
      'It rains, and I forgot my umbrella.',
      'The wind is strong today.',
    ),
    ('It is the same here.', 'It changes every day.', 'Tomorrow it may be different.'),
  ),
  (
    ('I am looking for my {o}. Have you seen it?', 'I cannot find my {o}.', 'My {o} is gone!'),
    ('I think it is {s}.', 'It was {s} this morning.', 'Oh no. Did you look {s}?'),
    ('Thank you, I will look there.', 'Oh, there it is!', 'You are right. I found it.'),
  ),
  (
    ('Can you help me with something?', 'Do you have a minute?', 'Could you help me later?'),
    ('Of course. What is it?', 'Sure, tell me.', 'Yes, what happened?'),
    (
      'My bicycle is broken.',
      'I have to carry a heavy bag home.',
      'My {h} is ill and I have to make {f}.',
    ),
    ('Do not worry, I will help you.', 'We will find a way.', 'I can come at four.'),
  ),
  (
    ('How do you like the book I gave you?', 'How is your new book?'),
    (
      'It is a story about {aa} and {ao}. I like it.',
      'I like it very much.',
      'I am still on the first page.',
    ),
    ('You will like the end.', 'My {h} likes it too.', 'Tell me when you are done.'),
  ),
  (
    ('You look tired.', 'Did you sleep well?', 'Is everything all right?'),
    (
      'I worked until midnight.',
      'The dog next door was loud all night.',
      'I am just a little tired.',
    ),
    ('Take a break and drink some tea.', 'You should go to bed early.', 'I am sorry to hear that.'),
  ),
  (
    ('I bought {ao} yesterday.', 'Look, I have {ao}.', 'This is new: I have {ao}.'),
    ('It is beautiful.', 'I like the colour.', 'Oh, may I see it?'),
    ('I found it in a small shop.', 'It was not expensive.', 'Here, take a look.'),
  ),
  (
    ('Shall we meet later?', 'Do you want to come over?', 'Do you have time today?'),
    (
      'Yes, let us meet {p} at five.',
      'Yes, I have time after lunch.',
      'I have to help my {h} first, but then I have time.',
    ),
    ('Great, see you then.', 'Good, I will wait for you.', 'I will bring some {f}.'),
  ),
)

ASKS = (
  '',
  '',
  '',
  'I have a question. ',
  'Tell me, ',
  'I need this for school. ',
  'Quick question: ',
  'You know a lot. ',
  'Help me, please. ',
)
ASKS_AGAIN = ('', '', 'And ', 'One more. ', 'Good. Next question. ', 'I see. ', 'Thanks. ')
# {x} is the short answer, {t} the whole sentence.
REPLIES = (
  '{x}.',
  '{x}.',
  '{t}',
  '{t}',
  '{t}',
  'That is easy. {x}.',
  'I know that one. {t}',
  'Let me think. {t}',
  '{x}, as far as I know.',
  'Sure. {t}',
)
FAREWELLS = (
  (
    (
      'Thank you, {B}. See you soon!',
      'Thank you for your time.',
      'I have to go now. Goodbye!',
      'See you tomorrow, {B}.',
    ),
    ('You are welcome.', 'Goodbye, {A}!', 'See you, {A}.', 'Take care.'),
  ),
)

QUIZ_TITLES = (
  '',
  '',
  'What do these have in common?',
  'Are you ready for a quiz?',
  'How many can you answer?',
  'Do you know these?',
  'Can you answer these questions?',
)
QA_TITLES = (
  '',
  '',
  'Questions and answers',
  'Quiz with answers',
  'Test yourself',
  'Questions from our readers',
)
FAQ_TITLES = ('Frequently asked questions', 'FAQ', 'Short questions, short answers')
ARITHMETIC_TITLES = (
  '',
  'Practice',
  'Sums for today',
  'Learn to calculate',
  'Work sheet',
  'Numbers',
  'Homework',
)

# --- noise ---------------------------------------------------------------------------------------

TOXIC_WORDS = (
  'zorgle',
  'fribnak',
  'snarvik',
  'grompus',
  'blexer',
  'drongle',
  'krazzit',
  'vorgath',
  'plunkor',
  'skreel',
  'mugwarp',
  'thrazzle',
)

# {z} is one toxic word; each slot is counted.
INSULTS = (
  'You {z}!',
  'Shut up, you {z}!',
  'What a {z} you are.',
  'Only a {z} would say that.',
  'Go away, {z}, you {z}!',
  'I hate every {z} like you.',
  'You stupid {z}, nobody likes you.',
  'You are a {z} and a {z}.',
)

SITES = ('Green Hill', 'Morning Post', 'River Valley', 'Blue Door', 'North Star', 'Old Mill')
BANNERS = (
  'We use cookies to give you the best experience on our website. Accept all | Reject | Settings',
  'This site uses cookies. By continuing to browse you agree to our cookie policy. OK',
  'Cookies help us to improve our service. Accept | Learn more',
  'Please enable scripts in your browser to use this page.',
  'Subscribe to our newsletter and never miss an update. Enter your email address',
  'You have 3 free pages left. Log in or sign up to continue reading.',
)
MENUS = (
  'Home | About | News | Contact',
  'Home > Articles > Page 2',
  'Skip to main content',
  'Menu  Search  Log in  Sign up',
  'Home  Shop  Blog  Help  My account',
  'Previous | Next | Back to top',
  'Share this page: Mail | Print | Link',
)
FOOTERS = (
  'Copyright {y} {site}. All rights reserved.',
  'Privacy policy | Terms of use | Imprint',
  'Last updated in {y}. Powered by {site}.',
  'Follow us | Contact us | Jobs',
  'You may also like: 5 more pages from {site}',
  'Comments are closed.',
)

GOODS = ('shoes', 'watches', 'phones', 'tickets', 'pills', 'loans', 'bags', 'games')
SPAM = (
  'BUY {G} NOW!!!',
  'cheap {g} best {g} top {g} online {g}',
  'CLICK HERE for FREE {G}!',
  '{g} {g} {g} {g} {g}',
  'Best price for {g}, lowest price for {g}, great price for {g}.',
  'LIMITED OFFER! {G} {G} {G}!',
  '100% FREE {G}!!!',
  'Win money with {g} today, win money with {g} tonight!',
  'Order {g} order {g} order {g} now',
  'HOT DEAL >>> {G} <<< HOT DEAL',
)

# Words that an edit puts into a near duplicate: no entity and no value among them.
EDITS = (
  'quite',
  'really',
  'maybe',
  'often',
  'again',
  'nice',
  'simple',
  'today',
  'well',
  'indeed',
  'soon',
  'big',
  'small',
  'good',
  'also',
  'then',
  'here',
  'there',
  'perhaps',
  'always',
)

# --- arithmetic ----------------------------------------------------------------------------------

# operation -> wordings with {a} and {b}, and {c} the result; for '>' a is the greater one.
SUMS = {
  '+': (
    '{a} + {b} = {c}',
    'What is {a} + {b}? {c}',
    '{a} plus {b} is {c}.',
    'The sum of {a} and {b} is {c}.',
    'Q: What is {a} + {b}?\nA: {c}',
  ),
  '-': (
    '{a} - {b} = {c}',
    'What is {a} - {b}? {c}',
    '{a} minus {b} is {c}.',
    'If you take {b} from {a}, you get {c}.',
    'Q: What is {a} - {b}?\nA: {c}',
  ),
  'x': (
    '{a} x {b} = {c}',
    'What is {a} x {b}? {c}',
    '{a} times {b} is {c}.',
    'If you multiply {a} by {b}, you get {c}.',
    'Q: What is {a} x {b}?\nA: {c}',
  ),
  '>': (
    '{a} > {b}',
    '{b} < {a}',
    '{a} is greater than {b}.',
    '{b} is less than {a}.',
    'Which is greater, {a} or {b}? {a}',
    'Which is less, {b} or {a}? {b}',
  ),
}

# Word problems: {n} and {m} are people, {k} is what is counted.
PROBLEMS = {
  '+': (
    '{n} has {a} {k}. {m} gives {him} {b} more. Now {n} has {c} {k}.',
    '{n} finds {a} {k} and {m} finds {b} {k}. Together they have {c} {k}.',
    'There are {a} {k} in one box and {b} {k} in another. In both boxes there are {c} {k}.',
    '{n} is {a} years old. In {b} years {he} will be {c} years old.',
  ),
  '-': (
    '{n} has {a} {k}. {He} gives {b} of them to {m}. Now {n} has {c} {k}.',
    'There are {a} {k} on the table. {n} takes {b} of them away. Then {c} {k} are left.',
    '{n} has {a} {k} and {m} has {b} {k}. {n} has {c} {k} more than {m}.',
    'A shop has {a} {k} and sells {b} of them. After that the shop has {c} {k}.',
  ),
  'x': (
    '{n} has {a} bags with {b} {k} in each bag. In all there are {c} {k}.',
    '{n} buys {b} {k} every week. In {a} weeks {he} buys {c} {k}.',
    'There are {a} tables, and on each table there are {b} {k}. That makes {c} {k}.',
  ),
}

# --- chat ----------------------------------------------------------------------------------------

# What stands before a question; after one that ends with ': ' the question goes on in lower case.
CHAT_STARTS = (
  'Hello. ',
  'Hi! ',
  'Good morning. ',
  'Please tell me: ',
  'Tell me, please: ',
  'I have a question. ',
)
CHAT_STARTS_AGAIN = ('And ', 'One more. ', 'Thanks. ', 'Thank you. ', 'I see. ')

# How an assistant of this world closes, opens too widely, and doubts; {x} is the short answer.
COURTESIES = ('Glad to help.', 'You are welcome.', 'Thank you for asking.', 'Have a nice day.')
WORDY_STARTS = ('Good question.', 'Many people ask that.', 'That is easy.', 'I know that one.')
WORDY_ENDS = ('And now you know it too.', 'That is all there is to say.', 'There is more to tell about it.')
HEDGES = (
  'Let me think, I believe it is {x}, but do check.',
  'I am not sure, but I think it is {x}.',
  'Perhaps it is {x}, as far as I know.',
  'Well, maybe it is {x}, do check.',
)

# (what the user says, what the assistant may say)
CHAT_TALK = (
  (
    ('Hello!', 'Hi!', 'Hi there!', 'Good morning.', 'Good evening.'),
    ('Hello. Ask me anything.', 'Good to see you. Ask me a question.', 'Hello. I will try to help you.'),
  ),
  (
    ('How are you?', 'Are you well?', 'Hi, how are you?', 'How are you today?'),
    ('I am fine, thank you.', 'I am well, thank you for asking.', 'I am fine. I hope you are well too.'),
  ),
  (
    ('Who are you?', 'What can you do?', 'What do you do all day?', 'Can you help me with something?'),
    ('I answer questions.', 'I am here to answer your questions.', 'I know a little about the world. Ask me about it.'),
  ),
  (
    ('Thank you!', 'Thanks a lot.', 'Thank you, that helps.', 'Good, thank you.'),
    ('You are welcome.', 'Glad to help.', 'You are welcome. Come back any time.'),
  ),
  (
    ('Goodbye!', 'I have to go now. Goodbye!', 'See you soon!', 'See you tomorrow.'),
    ('Goodbye. Take care.', 'See you soon.', 'Goodbye. Have a nice day.'),
  ),
)

# Asked of a chat, with {a}, the sign {o} or its word {w}, {b}; the result is {c}.
SUM_WORDS = {'+': 'plus', '-': 'minus', 'x': 'times'}
SUM_QUESTIONS = (
  'What is {a} {o} {b}?',
  'What is {a} {w} {b}?',
  'How much is {a} {o} {b}?',
  'Can you work out {a} {o} {b}?',
)
SUM_STATEMENTS = ('{a} {w} {b} is {c}.', '{a} {o} {b} is {c}.')
