-- What all scripts begin with.
local home, layout = KEYS[1], ARGV[1]

-- The answer where the home's layout is not ours, or there is something else of this name; none where it is ours, or nothing.
local function stranger(found)
  if found == layout then return nil end
  if found then return {'layout', found} end
  if redis.call('EXISTS', home) == 1 then return {'foreign'} end
end

-- The header of a generation that is the current one and whose manifest is whole; else what to answer instead.
local function current(generation, manifest)
  local seen = redis.call('HMGET', home, 'layout', 'current', 'header:' .. generation, 'channels:' .. generation)
  local answer = stranger(seen[1])
  if answer then return nil, answer end
  if seen[2] ~= generation or not seen[3] then
    return nil, {'elsewhere', seen[2] and redis.call('HGET', home, 'header:' .. seen[2]) or ''}
  end
  if redis.call('ZCARD', manifest) ~= tonumber(seen[4] or '0') then return nil, {'lost', seen[3]} end
  return seen[3]
end

-- All fields of the home.
local function fields_of_home()
  local fields, all = {}, redis.call('HGETALL', home)
  for at = 1, #all, 2 do fields[all[at]] = all[at + 1] end
  return fields
end

-- A generation is no longer there for anybody; its keys are swept later.
local function drop(name)
  redis.call('HDEL', home, 'header:' .. name, 'channels:' .. name, 'touched:' .. name)
  redis.call('HSET', home, 'dropped:' .. name, redis.call('TIME')[1])
end

