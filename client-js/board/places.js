/**
 * Where the flights of the demonstration go: the town of each airport's code, short enough for the board.
 *
 * Owns: this table. Never knows: a page or a row.
 */
const TOWNS = `
ABQ Albuquerque|ACK Nantucket|ATL Atlanta|AUS Austin|AVL Asheville|BGR Bangor|BHM Birmingham|BNA Nashville|BOS Boston
BQN Aguadilla|BTV Burlington|BUF Buffalo|BUR Burbank|BWI Baltimore|CAK Akron|CHS Charleston|CLE Cleveland|CLT Charlotte
CMH Columbus|CVG Cincinnati|DAY Dayton|DCA Washington|DEN Denver|DFW Dallas|DSM Des Moines|DTW Detroit
FLL Fort Lauderdale|GRR Grand Rapids|GSO Greensboro|GSP Greenville|HNL Honolulu|HOU Houston Hobby|IAD Dulles
IAH Houston|IND Indianapolis|JAX Jacksonville|LAS Las Vegas|LAX Los Angeles|LGB Long Beach|MCI Kansas City|MCO Orlando
MDW Chicago Midway|MEM Memphis|MHT Manchester|MIA Miami|MKE Milwaukee|MSN Madison|MSP Minneapolis|MSY New Orleans
MVY Martha's Vnyd|OAK Oakland|OKC Oklahoma City|OMA Omaha|ORD Chicago|ORF Norfolk|PBI Palm Beach|PDX Portland OR
PHL Philadelphia|PHX Phoenix|PIT Pittsburgh|PSE Ponce|PWM Portland ME|RDU Raleigh|RIC Richmond|ROC Rochester
RSW Fort Myers|SAN San Diego|SAT San Antonio|SAV Savannah|SDF Louisville|SEA Seattle|SFO San Francisco|SJC San Jose
SJU San Juan|SLC Salt Lake City|SMF Sacramento|SNA Santa Ana|SRQ Sarasota|STL St. Louis|STT St. Thomas|SYR Syracuse
TPA Tampa|TUL Tulsa|TYS Knoxville|XNA Bentonville`;

const byCode = new Map(TOWNS.trim().split(/[|\n]/).map((line) => [line.slice(0, 3), line.slice(4)]));

/** Three airports, and what travellers call them. */
export const AIRPORTS = { JFK: 'John F. Kennedy', EWR: 'Newark Liberty', LGA: 'LaGuardia' };

/** The town of an airport's code; else what the row says; else the code. */
export const town = (code, city) => byCode.get(code) ?? (city ? city.replace(/ (Intl|Airport|Regional).*$/, '') : code);

/** An airline's name as travellers say it. */
export const airlineName = (name) => {
  const short = String(name ?? '').replace(/ (Inc\.|Co\.|Corporation)$/, '').replace(/ (Air Lines|Airlines|Airways)$/, '');
  return short === 'US' ? 'US Airways' : short;
};
