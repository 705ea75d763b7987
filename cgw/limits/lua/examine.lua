-- examine: how limits stand, whoever's they are; and, when asked, make them unused.
--
-- KEYS     [1..n] one key per limit or notice, all in one slot (hash tag)
-- ARGV     [1] show | reset; then 3 per key: kind (bucket | lease | notice), limit, period in ms (limit 0: the bucket's
--          numbers are not known here, so those it was written with hold; leases and notices need neither)
-- Returns  {now in ms, then 4 per key: used, limit, period, ms until unused again}
--          used is in whole tokens, rounded up, and may exceed the limit (an overdraft); of leases: places that are
--          held; of a notice: the percentage that was told of last. -1: what the key holds can't be read (reset only).
-- Guarantees
--   show changes nothing, so a read-only replica may answer too; a key that can't be read is an error that names it.
--   reset deletes the keys, whatever they hold, and returns how they stood; nobody claims in between.

local is_reset = ARGV[1] == 'reset'
local now = now_ms()
local look = {}

function look.bucket(key, limit, period)
  local debt, old_limit, old_period = load_bucket(key, now)
  if not debt then return 0, limit, period, 0 end
  if limit > 0 then
    debt = convert_debt(debt, old_limit, old_period, limit, period)
  else
    limit, period = old_limit, old_period
  end
  return ceil(debt / period), limit, period, ceil(debt / limit)
end

function look.lease(key, limit, period)
  local ends = read('ZRANGEBYSCORE', key, '(' .. text(now), '+inf', 'WITHSCORES')
  return #ends / 2, limit, period, #ends > 0 and tonumber(ends[#ends]) - now or 0
end

function look.notice(key, limit, period)
  local told = read('GET', key)
  if not told then return 0, limit, period, 0 end
  return tonumber(told) or error('key ' .. key .. ' holds no notice', 0), limit, period, call('PTTL', key)
end

local answer = {now}
for i = 1, #KEYS do
  local key, at = KEYS[i], 3 * i - 1
  local kind, limit, period = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local figures
  if is_reset then
    local found = {pcall(look[kind], key, limit, period)}
    figures = found[1] and {unpack(found, 2)} or {-1, limit, period, 0}
    call('DEL', key)
  else
    figures = {look[kind](key, limit, period)}
  end
  for _, figure in ipairs(figures) do answer[#answer + 1] = figure end
end
return answer
