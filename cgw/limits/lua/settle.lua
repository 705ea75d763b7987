-- settle: put what was really used in place of what was reserved, once.
--
-- KEYS     as given to admit: [1] the reservation's record; [2..n+1] one key per limit; [n+2] the notices' key, if
--          ARGV[3] names thresholds
-- ARGV     [1] reservation id; [2] 0 for what was admitted here; > 0 for what was admitted elsewhere while this server
--          was away: ms to remember that it is settled; < 0 to give up an admission whose answer never came: ms to
--          remember that, as it may still be on its way here over another connection; [3] thresholds as for admit; then 5 per limit:
--          kind (bucket | window | lease), limit, period in ms, reserved, used
-- Returns  {1 when it was settled now, 0 when it had been settled before, was never admitted, or its record expired;
--          threshold that was reached just now or 0}
-- Guarantees
--   Once: a second call changes nothing. A lease is freed in any case.
--   used < reserved gives the difference back, exactly, as far as there is debt. What time has given back already
--   is not given twice: nothing comes back of a bucket that was empty since, or of a window that has ended. So in
--   any span of time, what was admitted less what was given back is at most the limit and its refill.
--   used > reserved is charged, up to a debt of two full buckets. Limits that were changed meanwhile keep their
--   new numbers.

local now -- most settlements need no clock
local record, admitted_at, first_remaining
local remember = tonumber(ARGV[2])
if remember <= 0 then
  record = call('GETDEL', KEYS[1])
  if record == 'void' then record = false end -- it was given up before it came
  if record then
    local _
    _, admitted_at, _, first_remaining = unpack_numbers('<dddd', record)
  elseif remember < 0 then
    call('SET', KEYS[1], 'void', 'PX', text(-remember))
  end
else
  -- There is no record of it here, but must be one of its settlement.
  record = call('SET', KEYS[1], 'settled', 'PX', ARGV[2], 'NX')
  now = now_ms()
  admitted_at = now
end

local settle = {}

-- Each settles one limit, and returns how much of it is used now.
function settle.bucket(key, limit, period, difference)
  local debt, old_limit, old_period, empty_at = load_bucket(key, now)
  if debt then
    limit, period = old_limit, old_period
  else
    if difference < 0 then return 0 end
    debt, empty_at = 0, now
  end
  if difference >= 0 or admitted_at >= empty_at then
    local most = 2 * limit * period
    -- Compare in tokens first: the product of an absurd usage could leave the exact range.
    local change = difference > 2 * limit and most or difference * period
    debt = max(0, min(debt + change, most))
    save_bucket(key, now, debt, limit, period, empty_at)
  end
  return ceil(debt / period)
end

function settle.window(key, limit, period, difference)
  local used, id = load_window(key, now, period)
  if difference >= 0 or floor(admitted_at / period) >= id then
    used = max(0, used + difference)
    save_window(key, used, id, now, period)
  end
  return used
end

local count = (#ARGV - 3) / 5
-- Places first: whatever becomes of the rest (a key that holds no limit ends the script), they must come free.
for i = 1, count do
  if ARGV[5 * i - 1] == 'lease' then call('ZREM', KEYS[i + 1], ARGV[1]) end
end

local first_used
for i = 1, count do
  local at = 5 * i - 1
  local kind, reserved, used = ARGV[at], ARGV[at + 3], ARGV[at + 4]
  if record and kind ~= 'lease' and reserved ~= used then
    now = now or now_ms()
    local amount = settle[kind](KEYS[i + 1], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), used - reserved)
    if i == 1 then first_used = amount end
  elseif record and i == 1 and first_remaining then
    first_used = ARGV[5] - first_remaining -- as it stood when it was claimed: no need to look again
  end
end

local threshold = 0
if ARGV[3] ~= '' and first_used and tonumber(ARGV[8]) > 0 then
  threshold = cross(KEYS[#KEYS], ARGV[3], first_used, tonumber(ARGV[5]), tonumber(ARGV[6]))
end
return {record and 1 or 0, threshold}
