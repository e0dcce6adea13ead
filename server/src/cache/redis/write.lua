-- One batch: compares the header, and only if it is the expected one writes rows, last changes and the new header.
-- KEYS  home, manifest, then rows and ids of each channel
-- ARGV  layout, generation, expected header ('' for none), new header,
--       then for each channel: name, last change, count of upserts, count of deletes, field and value of each upsert,
--       field of each delete
-- Everything is looked at before anything is written, and the first write is one that a full Redis refuses: so all or nothing.
local manifest, generation, expected, header = KEYS[2], ARGV[2], ARGV[3], ARGV[4]
local PIECE = 2000 -- what one command takes: Lua's stack is bounded

local seen = redis.call('HMGET', home, 'layout', 'header:' .. generation, 'channels:' .. generation)
local answer = stranger(seen[1])
if answer then return answer end
local there = seen[2] or ''
if there ~= expected then return {'conflict', there} end
local named = tonumber(seen[3] or '0')
if redis.call('ZCARD', manifest) ~= named then return {'lost', ''} end

local channels, at, key = {}, 5, 3
while key < #KEYS do
  local channel = {
    name = ARGV[at], last = ARGV[at + 1], rows = KEYS[key], ids = KEYS[key + 1],
    upserts = tonumber(ARGV[at + 2]), deletes = tonumber(ARGV[at + 3]), at = at + 4,
  }
  local entry = redis.call('ZRANGEBYLEX', manifest, '[' .. channel.name .. ' ', '(' .. channel.name .. '!', 'LIMIT', 0, 1)[1]
  local fields, ids = redis.call('HLEN', channel.rows), redis.call('ZCARD', channel.ids)
  if entry then
    if fields ~= ids + 1 or redis.call('HEXISTS', channel.rows, '!') == 0 then return {'lost', channel.name} end
  elseif fields + ids > 0 then
    return {'lost', channel.name}
  else
    named = named + 1
  end
  channel.entry = entry
  channels[#channels + 1] = channel
  at, key = channel.at + 2 * channel.upserts + channel.deletes, key + 2
end

local now = redis.call('TIME')
redis.call('HSET', home, 'layout', layout, 'header:' .. generation, header,
  'channels:' .. generation, string.format('%d', named), 'touched:' .. generation, now[1])
for _, channel in ipairs(channels) do
  local entry = channel.name .. ' ' .. channel.last
  if not channel.entry then redis.call('HSET', channel.rows, '!', '') end
  if channel.entry ~= entry then
    if channel.entry then redis.call('ZREM', manifest, channel.entry) end
    redis.call('ZADD', manifest, 0, entry)
  end
  local behind = channel.at + 2 * channel.upserts
  for from = channel.at, behind - 1, PIECE do
    local last = math.min(from + PIECE, behind) - 1
    redis.call('HSET', channel.rows, unpack(ARGV, from, last))
    local scored = {}
    for field = from, last, 2 do
      scored[#scored + 1] = 0
      scored[#scored + 1] = ARGV[field]
    end
    redis.call('ZADD', channel.ids, unpack(scored))
  end
  for from = behind, behind + channel.deletes - 1, PIECE do
    local last = math.min(from + PIECE, behind + channel.deletes) - 1
    redis.call('HDEL', channel.rows, unpack(ARGV, from, last))
    redis.call('ZREM', channel.ids, unpack(ARGV, from, last))
  end
end
return {'written'}
