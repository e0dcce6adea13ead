-- Makes a generation the current one, if the current header and its own are the expected ones. All others are dropped.
-- KEYS  home
-- ARGV  layout, expected header of the current generation ('' for none), generation, its expected header
local home = KEYS[1]
local layout, expected, generation, header = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local fields = {}
local all = redis.call('HGETALL', home)
for at = 1, #all, 2 do fields[all[at]] = all[at + 1] end
if fields.layout ~= layout then
  if fields.layout then return {'layout', fields.layout} end
  if #all > 0 then return {'foreign'} end
end
local there = fields.current and fields['header:' .. fields.current] or ''
if there ~= expected or fields['header:' .. generation] ~= header then return {'conflict', there} end
redis.call('HSET', home, 'current', generation)
for field in pairs(fields) do
  local name = string.match(field, '^header:(.*)$')
  if name and name ~= generation then
    redis.call('HDEL', home, field, 'channels:' .. name, 'touched:' .. name)
    redis.call('HSET', home, 'dropped:' .. name, redis.call('TIME')[1])
  end
end
return {'flipped'}
