-- Appends a batch, once.
-- KEYS  log, epoch, writer
-- ARGV  as in common.lua, then: the batch's number, how long it is remembered in milliseconds, most entries that the log keeps (0: all),
--       their longest age in milliseconds (0: any), how many records; of each how many words, and these: fields and values in turn
-- Its first write is one that a full server refuses, unless the log has just got its name: so it is all in the log, or nothing.
local SEQ_END, MS_END = 4194304, 4398046511104 -- an offset has room for less
local writer = KEYS[3]
local number, remembered, most, oldest, count = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

local epoch, stream, instead = identify()
if instead then return instead end

local done = redis.call('GET', writer)
if done then
  local its, ms, seq = string.match(done, '^(%d+) (%d+)-(%d+)$')
  if tonumber(its) == number then return {'added', epoch, ms, seq} end
  if tonumber(its) > number then return {'late'} end
end

local now = redis.call('TIME')
local ms, seq = now[1] * 1000 + math.floor(now[2] / 1000), 0
local last_ms, last_seq = parts(stream.last)
if ms <= last_ms then ms, seq = last_ms, last_seq + 1 end
if seq + count > SEQ_END then ms, seq = ms + 1, 0 end
if ms >= MS_END then return {'unfit', stream.last} end

local at = 11
for i = 0, count - 1 do
  local words = tonumber(ARGV[at])
  redis.call('XADD', log, string.format('%.0f-%.0f', ms, seq + i), unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
redis.call('SET', writer, string.format('%.0f %.0f-%.0f', number, ms, seq), 'PX', remembered)
stream.last, stream.added = string.format('%.0f-%.0f', ms, seq + count - 1), stream.added + count
note(stream)
if most > 0 then redis.call('XTRIM', log, 'MAXLEN', '~', most) end
if oldest > 0 then redis.call('XTRIM', log, 'MINID', '~', string.format('%.0f', math.max(ms - oldest, 0))) end
return {'added', epoch, string.format('%.0f', ms), string.format('%.0f', seq)}
