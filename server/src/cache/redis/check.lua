-- Whether the keys of some channels are whole.
-- KEYS  home, manifest, then rows and ids of each channel
-- ARGV  layout, generation, then the name of each channel
local header, answer = current(ARGV[2], KEYS[2])
if not header then return answer end
for at = 3, #ARGV do
  local rows, ids = KEYS[2 * at - 3], KEYS[2 * at - 2]
  if redis.call('HLEN', rows) ~= redis.call('ZCARD', ids) + 1 or redis.call('HEXISTS', rows, '!') == 0 then
    return {'missing', ARGV[at]}
  end
end
return {'whole'}
