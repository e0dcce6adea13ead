-- Says that a member is there, or leaves, and shares the partitions out anew. One step: so no two are given one, but for the work that a
-- member who was given up, or gave one back, has still to hear of.
-- KEYS  members (a sorted set: until when each counts as there), leases (a hash: whose each partition is)
-- ARGV  the member, for how long it counts as there in milliseconds (0: it leaves), how many partitions there are
local members, leases = KEYS[1], KEYS[2]
local me, session, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if session > 0 then
  redis.call('ZADD', members, string.format('%.0f', now + session), me)
else
  redis.call('ZREM', members, me)
end
redis.call('ZREMRANGEBYSCORE', members, '-inf', string.format('%.0f', now))
local here, is_here, rank = redis.call('ZRANGE', members, 0, -1), {}, 0
table.sort(here)
for at, name in ipairs(here) do
  is_here[name] = true
  if name == me then rank = at end
end

local whose, all = {}, redis.call('HGETALL', leases)
for at = 1, #all, 2 do whose[all[at]] = all[at + 1] end
local mine, free = {}, {}
for number = 0, count - 1 do
  local who = whose[tostring(number)]
  if who == me then
    mine[#mine + 1] = number
  elseif not who or not is_here[who] then
    free[#free + 1] = number
  end
end

-- As many for each, and one more for the first few. Who has more gives the last ones back, for others to find.
local due = 0
if rank > 0 then due = math.floor(count / #here) + (rank <= count % #here and 1 or 0) end
while #mine > due do redis.call('HDEL', leases, table.remove(mine)) end
for _, number in ipairs(free) do
  if #mine >= due then break end
  redis.call('HSET', leases, number, me)
  mine[#mine + 1] = number
end
if session > 0 then
  redis.call('PEXPIRE', members, session)
  redis.call('PEXPIRE', leases, session)
end
return mine
