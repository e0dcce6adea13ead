-- One page of the manifest: channels with their last change, with the header of the same moment.
-- KEYS  home, manifest
-- ARGV  layout, generation, where to begin, most channels
local home, manifest = KEYS[1], KEYS[2]
local layout, generation, from, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

local seen = redis.call('HMGET', home, 'layout', 'current', 'header:' .. generation, 'channels:' .. generation)
if seen[1] ~= layout then
  if seen[1] then return {'layout', seen[1]} end
  if redis.call('EXISTS', home) == 1 then return {'foreign'} end
end
if seen[2] ~= generation or not seen[3] then
  return {'elsewhere', seen[2] and redis.call('HGET', home, 'header:' .. seen[2]) or ''}
end
if redis.call('ZCARD', manifest) ~= tonumber(seen[4] or '0') then return {'lost', seen[3]} end
local entries = redis.call('ZRANGEBYLEX', manifest, from, '+', 'LIMIT', 0, most + 1)
local page = {'names', seen[3], #entries > most and 1 or 0}
for at = 1, math.min(#entries, most) do page[at + 3] = entries[at] end
return page
