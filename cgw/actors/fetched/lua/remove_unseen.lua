-- remove_unseen: replace the records of tokens that a whole sync has not written by a mark that they were removed.
--
-- KEYS     [1] the fence, [2] the index
-- ARGV     [1] the fencing token, [2] when the sync began, in µs of this server, [3] what the keys of tokens begin with,
--          [4] the mark, [5] its time to live in ms, [6] how many to look at
-- Returns  {looked at, removed}; or 'fenced'

if tonumber(ARGV[1]) < (tonumber(redis.call('GET', KEYS[1]) or '0') or 0) then return 'fenced' end
local hashes = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[6])
local removed = 0
for _, hash in ipairs(hashes) do
  local key = ARGV[3] .. hash
  -- Some have expired before.
  if redis.call('EXISTS', key) == 1 then
    redis.call('SET', key, ARGV[4], 'PX', ARGV[5])
    removed = removed + 1
  end
  redis.call('ZREM', KEYS[2], hash)
end
return {#hashes, removed}
