-- Drops the generations beside the current one that nobody wrote to for a time, or all of them; names those whose keys are left.
-- KEYS  home
-- ARGV  layout, seconds without a write, 'beside' or 'all'
local home, layout, patience, which = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]

local fields = {}
local all = redis.call('HGETALL', home)
for at = 1, #all, 2 do fields[all[at]] = all[at + 1] end
if fields.layout ~= layout then
  if fields.layout then return {'layout', fields.layout} end
  if #all > 0 then return {'foreign'} end
end
local now, names = tonumber(redis.call('TIME')[1]), {'dropped'}
if which == 'all' and fields.current then redis.call('HDEL', home, 'current') end
for field, value in pairs(fields) do
  local left = string.match(field, '^dropped:(.*)$')
  if left then names[#names + 1] = left end
  local name = string.match(field, '^header:(.*)$')
  local quiet = name and now - tonumber(fields['touched:' .. name] or '0') >= patience
  if name and (which == 'all' or (name ~= fields.current and quiet)) then
    redis.call('HDEL', home, field, 'channels:' .. name, 'touched:' .. name)
    redis.call('HSET', home, 'dropped:' .. name, now)
    names[#names + 1] = name
  end
end
return names
