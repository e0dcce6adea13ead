-- Makes a generation the current one, if the current header and its own are the expected ones. All others are dropped.
-- KEYS  home
-- ARGV  layout, expected header of the current generation ('' for none), generation, its expected header
local expected, generation, header = ARGV[2], ARGV[3], ARGV[4]
local fields = fields_of_home()
local answer = stranger(fields.layout)
if answer then return answer end
local there = fields.current and fields['header:' .. fields.current] or ''
if there ~= expected or fields['header:' .. generation] ~= header then return {'conflict', there} end
redis.call('HSET', home, 'current', generation)
for field in pairs(fields) do
  local name = string.match(field, '^header:(.*)$')
  if name and name ~= generation then drop(name) end
end
return {'flipped'}
