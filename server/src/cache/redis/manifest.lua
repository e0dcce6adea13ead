-- One page of the manifest: channels with their last change, with the header of the same moment.
-- KEYS  home, manifest
-- ARGV  layout, generation, where to begin, most channels
local manifest, generation, from, most = KEYS[2], ARGV[2], ARGV[3], tonumber(ARGV[4])

local header, answer = current(generation, manifest)
if not header then return answer end
local entries = redis.call('ZRANGEBYLEX', manifest, from, '+', 'LIMIT', 0, most + 1)
local page = {'names', header, #entries > most and 1 or 0}
for at = 1, math.min(#entries, most) do page[at + 3] = entries[at] end
return page
