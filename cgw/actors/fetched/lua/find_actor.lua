-- find_actor: read a token's record and that of its actor, in one call.
--
-- KEYS     [1] the token's record
-- ARGV     [1] what the keys of actors' records begin with (in the slot of KEYS[1])
-- Returns  {token's record, actor's record}; a record that is missing, or is no string, is false.

local function read(key)
  local value = redis.pcall('GET', key)
  -- An error: a key of another type, which a later SET replaces.
  if type(value) == 'table' then return false end
  return value
end

local token = read(KEYS[1])
if not token then return {false, false} end
local is_json, record = pcall(cjson.decode, token)
if not is_json or type(record) ~= 'table' or type(record.id) ~= 'string' then return {token, false} end
return {token, read(ARGV[1] .. record.id)}
