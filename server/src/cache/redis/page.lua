-- One page of a channel's rows, with the header of the same moment.
-- KEYS  home, manifest, rows, ids
-- ARGV  layout, generation, channel, where in the ids to begin, most rows, most bytes
local manifest, rows, ids = KEYS[2], KEYS[3], KEYS[4]
local generation, name, from = ARGV[2], ARGV[3], ARGV[4]
local rows_max, bytes_max = tonumber(ARGV[5]), tonumber(ARGV[6])
local PIECE = 256 -- ids that are looked at together

local header, answer = current(generation, manifest)
if not header then return answer end
local entry = redis.call('ZRANGEBYLEX', manifest, '[' .. name .. ' ', '(' .. name .. '!', 'LIMIT', 0, 1)[1]
if not entry then return {'rows', header, '', 0} end
if redis.call('HEXISTS', rows, '!') == 0 or redis.call('HLEN', rows) ~= redis.call('ZCARD', ids) + 1 then
  return {'lost', header}
end

local page, count, bytes = {'rows', header, string.sub(entry, #name + 2), 0}, 0, 0
while true do
  local piece = redis.call('ZRANGEBYLEX', ids, from, '+', 'LIMIT', 0, PIECE)
  for _, id in ipairs(piece) do
    local row = redis.call('HGET', rows, id)
    if not row then return {'lost', header} end
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
