-- examine: read how limits stand, for operators, and on request make them unused.
--
-- KEYS     [1..n] one key per limit or alert, all in one slot (hash tag)
-- ARGV     [1] show | reset; then 3 per key: kind (bucket | lease | alert), limit, period in ms (limit 0: the caller
--          does not know the bucket's numbers, so those it was written with are used; leases and alerts need neither)
-- Returns  {now in ms, then 4 per key: used, limit, period, ms until unused again}
--          used: whole tokens, rounded up, which may exceed the limit (an overdraft); of leases: slots that are held; of
--          an alert: the percentage that the last alert was sent for; -1: the key's value can't be read (reset only).
-- Guarantees
--   show changes nothing, so a read-only replica may answer too; a key whose value can't be read is an error that names it.
--   reset deletes the keys, whatever they hold, and returns how they stood. Both happen in this one script, so nothing
--   can be claimed in between.

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

function look.alert(key, limit, period)
  local percentage = read('GET', key)
  if not percentage then return 0, limit, period, 0 end
  return tonumber(percentage) or error('key ' .. key .. ' holds no percentage', 0), limit, period, call('PTTL', key)
end

local answer = {now}
for i = 1, #KEYS do
  local key, at = KEYS[i], 3 * i - 1
  local kind, limit, period = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local figures
  if is_reset then
    local found = {pcall(look[kind], key, limit, period)} -- a broken key is what a reset is for
    figures = found[1] and {unpack(found, 2)} or {-1, limit, period, 0}
    call('DEL', key)
  else
    figures = {look[kind](key, limit, period)}
  end
  for _, figure in ipairs(figures) do answer[#answer + 1] = figure end
end
return answer
