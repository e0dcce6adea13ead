-- One page of a channel's rows, with the header of the same moment.
-- KEYS  home, manifest, rows, ids
-- ARGV  layout, generation, channel, where in the ids to begin, most rows, most bytes
local home, manifest, rows, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local layout, generation, name, from = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local rows_max, bytes_max = tonumber(ARGV[5]), tonumber(ARGV[6])
local PIECE = 256 -- ids that are looked at together

local seen = redis.call('HMGET', home, 'layout', 'current', 'header:' .. generation, 'channels:' .. generation)
if seen[1] ~= layout then
  if seen[1] then return {'layout', seen[1]} end
  if redis.call('EXISTS', home) == 1 then return {'foreign'} end
end
if seen[2] ~= generation or not seen[3] then
  return {'elsewhere', seen[2] and redis.call('HGET', home, 'header:' .. seen[2]) or ''}
end
if redis.call('ZCARD', manifest) ~= tonumber(seen[4] or '0') then return {'lost', seen[3]} end
local entry = redis.call('ZRANGEBYLEX', manifest, '[' .. name .. ' ', '(' .. name .. '!', 'LIMIT', 0, 1)[1]
if not entry then return {'rows', seen[3], '', 0} end
if redis.call('HEXISTS', rows, '!') == 0 or redis.call('HLEN', rows) ~= redis.call('ZCARD', ids) + 1 then
  return {'lost', seen[3]}
end

local page, count, bytes = {'rows', seen[3], string.sub(entry, #name + 2), 0}, 0, 0
while true do
  local piece = redis.call('ZRANGEBYLEX', ids, from, '+', 'LIMIT', 0, PIECE)
  for _, id in ipairs(piece) do
    local row = redis.call('HGET', rows, id)
    if not row then return {'lost', seen[3]} end
    bytes = bytes + #id + #row
    if count >= rows_max or (count > 0 and bytes > bytes_max) then
      page[4] = 1
      return page
    end
    count = count + 1
    page[#page + 1] = id
    page[#page + 1] = row
  end
  if #piece < PIECE then return page end
  from = '(' .. piece[PIECE]
end
