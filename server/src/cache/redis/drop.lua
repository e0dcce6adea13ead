-- Drops the generations beside the current one that nobody wrote to for a time, or all of them; names those whose keys are left.
-- KEYS  home
-- ARGV  layout, seconds without a write, 'beside' or 'all'
local patience, which = tonumber(ARGV[2]), ARGV[3]
local fields = fields_of_home()
local answer = stranger(fields.layout)
if answer then return answer end
local now, names = tonumber(redis.call('TIME')[1]), {'dropped'}
if which == 'all' and fields.current then redis.call('HDEL', home, 'current') end
for field, value in pairs(fields) do
  local left = string.match(field, '^dropped:(.*)$')
  if left then names[#names + 1] = left end
  local name = string.match(field, '^header:(.*)$')
  local quiet = name and now - tonumber(fields['touched:' .. name] or '0') >= patience
  if name and (which == 'all' or (name ~= fields.current and quiet)) then
    drop(name)
    names[#names + 1] = name
  end
end
return names
