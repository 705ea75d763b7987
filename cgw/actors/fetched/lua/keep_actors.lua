-- keep_actors: write the records of actors and of their tokens.
--
-- KEYS     [1] the fence, [2] the index of tokens, by the time of their last writing in µs
-- ARGV     [1] the writer's fencing token, 0 without one, [2] time to live in ms, [3] is there an index (1 or 0),
--          [4] what the keys of tokens' records begin with, [5] the same of actors' records;
--          then 4 per actor: its id, its record (empty: it stays as it is), its tokens' record (empty: they stay as they
--          are), the hashes of its tokens, 64 characters each, one behind the other
-- Returns  the actors' earlier records, in their order, false where there was none; or 'fenced', with nothing written,
--          if a writer with a greater fencing token has written

local fence, ttl = tonumber(ARGV[1]), ARGV[2]
if fence > 0 and fence < (tonumber(redis.call('GET', KEYS[1]) or '0') or 0) then return 'fenced' end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local earlier = {}
for at = 6, #ARGV, 4 do
  local key, record, token_record, hashes = ARGV[5] .. ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local old = redis.pcall('GET', key)
  earlier[#earlier + 1] = type(old) ~= 'table' and old
  if record ~= '' then redis.call('SET', key, record, 'PX', ttl) end
  for from = 1, #hashes, 64 do
    local hash = hashes:sub(from, from + 63)
    if token_record ~= '' then redis.call('SET', ARGV[4] .. hash, token_record, 'PX', ttl) end
    if ARGV[3] == '1' then redis.call('ZADD', KEYS[2], now, hash) end
  end
end
-- As long as the records that it lists; by then the next sync has written it again.
if ARGV[3] == '1' then redis.call('PEXPIRE', KEYS[2], ttl) end
return earlier
