-- What both scripts begin with: whether this server is a primary, what the stream is, and which log it is.
-- KEYS  log, epoch
-- ARGV  layout, a name that no log ever had,
--       the name that the caller knows the log by ('' for none), how far he has read it ('' for nothing), '1' where that is an entry
-- Nothing is written as long as the log is what it was, but for a note of its end, once a second.
local log, home = KEYS[1], KEYS[2]
local layout, fresh, known, at, at_entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'

local info = redis.call('INFO', 'replication')
local function said(name) return string.match(info, '\n' .. name .. ':([^\r\n]*)') end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- The stream as it is: where it ends, where it begins, how many entries it has and how many it ever had. Or what is wrong with it.
local function survey()
  local stream = {length = 0, added = 0, first = '', newest = '', last = '0-0', deleted = '0-0'}
  local told = redis.pcall('XINFO', 'STREAM', log)
  if told.err then
    if string.find(told.err, 'no such key', 1, true) then return stream end
    return nil, told
  end
  local field = {}
  for i = 1, #told - 1, 2 do field[told[i]] = told[i + 1] end
  if not field['entries-added'] then return nil, {'old'} end
  stream.length, stream.added = field['length'], field['entries-added']
  stream.last, stream.deleted = field['last-generated-id'], field['max-deleted-entry-id']
  if field['first-entry'] then stream.first, stream.newest = field['first-entry'][1], field['last-entry'][1] end
  return stream
end

-- Where an entry was that this log had, everything before it is gone although nothing was ever taken away: it is another stream.
local function is_younger_than(stream, id)
  return stream.length > 0 and stream.added == stream.length and before(id, stream.first)
end

-- Why the log can't be the one that it was; none where it is.
local function went_back(stream, epoch, seen, added)
  if before(stream.last, seen) or stream.added < tonumber(added) then return 'the stream lost its end' end
  if seen ~= '0-0' and is_younger_than(stream, seen) then return 'the stream was made anew' end
  if epoch ~= known or at == '' then return nil end
  if before(stream.last, at) then return 'the stream lost what was read' end
  if not at_entry then return nil end
  if is_younger_than(stream, at) then return 'the stream was made anew' end
  local is_within = stream.length > 0 and not before(at, stream.first) and before(stream.deleted, at)
  if is_within and #redis.call('XRANGE', log, at, at) == 0 then return 'the stream lacks an entry that was read' end
end

-- Where the end is. A server that is full does not take it, and is read all the same.
local function note(stream)
  redis.pcall('HSET', home, 'seen', stream.last, 'added', string.format('%.0f', stream.added))
end

-- The log's name and its stream; or what to answer instead.
local function identify()
  if said('role') ~= 'master' then
    return nil, nil, redis.error_reply('READONLY it is a replica of ' .. (said('master_host') or 'an unknown primary'))
  end
  if said('min_slaves_good_slaves') == '0' then return nil, nil, {'cut_off'} end
  local stream, wrong = survey()
  if wrong then return nil, nil, wrong end
  local kept = redis.call('HMGET', home, 'layout', 'epoch', 'replid', 'seen', 'added')
  local epoch, replid, why = kept[2], said('master_replid'), nil
  if kept[1] and kept[1] ~= layout then return nil, nil, {'layout', kept[1]} end
  if not kept[1] and redis.call('EXISTS', home) == 1 then return nil, nil, {'foreign'} end
  if not epoch then
    why = 'it had no name'
  elseif kept[3] ~= replid then
    why = 'another server has it, or another life of the same'
  else
    why = went_back(stream, epoch, kept[4] or '0-0', kept[5] or '0')
  end
  if why then
    redis.call('HSET', home, 'layout', layout, 'epoch', fresh, 'replid', replid, 'why', why, 'since', redis.call('TIME')[1])
    note(stream)
    return fresh, stream
  end
  if tonumber(string.match(stream.last, '^%d+')) >= tonumber(string.match(kept[4] or '0-0', '^%d+')) + 1000 then note(stream) end
  return epoch, stream
end
