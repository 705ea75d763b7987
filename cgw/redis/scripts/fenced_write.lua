-- fenced_write: write and delete records, unless a later holder of the lock has been here.
--
-- KEYS     [1] the fence: the largest token that was presented for this hash tag; [2..n] records, of the same hash tag
-- ARGV     [1] the caller's token; then 2 per record: ms until it expires (0: delete it), its value
-- Returns  the fence; if it is larger than the caller's token, nothing was written.

local token = tonumber(ARGV[1])
local fence = tonumber(redis.call('GET', KEYS[1])) or 0
if fence > token then return fence end
if fence < token then redis.call('SET', KEYS[1], ARGV[1]) end
for i = 2, #KEYS do
  local expiry, value = ARGV[2 * i - 2], ARGV[2 * i - 1]
  if expiry == '0' then
    redis.call('DEL', KEYS[i])
  else
    redis.call('SET', KEYS[i], value, 'PX', expiry)
  end
end
return token
