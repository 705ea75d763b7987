-- settle: replace what was reserved by what was really used, once.
--
-- KEYS     as for admit: [1] the reservation's record; [2..n+1] one key per limit; [n+2] the key of the first limit's
--          alerts, if ARGV[3] has thresholds
-- ARGV     [1] reservation id; [2] mode, see below; [3] thresholds as for admit; then 5 per limit:
--          kind (bucket | lease), limit, period in ms, reserved, used
-- Modes    0    settle what admit reserved here.
--          > 0  charge what was admitted elsewhere while this server was away. No record can exist, so one is written
--               ("settled") and kept for ARGV[2] ms: a repeated call finds it.
--          < 0  give up an admission whose answer never came: the caller was cancelled, or its connection broke. admit
--               may still be on its way over another connection and arrive after this call; so if there is no record
--               yet, write "void" and keep it for -ARGV[2] ms: admit then fails instead of reserving.
-- Returns  {1 if it was settled now, 0 if it had been settled before, was never admitted, or its record expired;
--          threshold that was reached just now or 0}
-- Guarantees
--   Once: a second call changes nothing. Leases are freed in any case.
--   used < reserved gives the difference back exactly, as far as there is debt. Nothing is given back to a bucket
--   that was empty since the admission: time has paid that claim off already, and doing it twice would let through
--   more than the limit. So in any span of time, what was admitted less what was given back is at most the limit and
--   its refill.
--   used > reserved is charged, up to a debt of two full buckets. Limits whose numbers changed since the admission
--   keep their new numbers.

local now -- fetched when needed: settling exactly what was reserved needs no clock
local record, admitted_at, first_remaining
local mode = tonumber(ARGV[2])
if mode <= 0 then
  -- GETDEL makes it "once": only one call gets the record.
  record = call('GETDEL', KEYS[1])
  if record == 'void' then record = false end -- given up twice; it is written again below
  if record then
    local _
    _, admitted_at, _, first_remaining = unpack_numbers('<dddd', record) -- the beginning of admit's answer
  elseif mode < 0 then
    call('SET', KEYS[1], 'void', 'PX', text(-mode))
  end
else
  record = call('SET', KEYS[1], 'settled', 'PX', ARGV[2], 'NX')
  now = now_ms()
  admitted_at = now
end

-- Add `difference` tokens to a bucket. Returns the tokens that are used now.
local function settle_bucket(key, limit, period, difference)
  local debt, old_limit, old_period, empty_at = load_bucket(key, now)
  if debt then
    limit, period = old_limit, old_period
  else
    if difference < 0 then return 0 end
    debt, empty_at = 0, now
  end
  -- empty_at is when a claim last found no debt. An admission before that has been paid off by time.
  if difference >= 0 or admitted_at >= empty_at then
    local most = 2 * limit * period
    -- Compare in tokens first: the product of an absurd usage could exceed 2^53.
    local change = difference > 2 * limit and most or difference * period
    debt = max(0, min(debt + change, most))
    save_bucket(key, now, debt, limit, period, empty_at)
  end
  return ceil(debt / period)
end

local count = (#ARGV - 3) / 5
-- Free leases first: an error below (a key that is not a bucket) ends the script, and must not leave them taken. What a
-- script has written before an error stays written.
for i = 1, count do
  if ARGV[5 * i - 1] == 'lease' then call('ZREM', KEYS[i + 1], ARGV[1]) end
end

local first_used
for i = 1, count do
  local at = 5 * i - 1
  local kind, reserved, used = ARGV[at], ARGV[at + 3], ARGV[at + 4]
  if record and kind ~= 'lease' and reserved ~= used then -- compared as text; both come from the same formatting
    now = now or now_ms()
    local amount = settle_bucket(KEYS[i + 1], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), used - reserved)
    if i == 1 then first_used = amount end
  elseif record and i == 1 and first_remaining then
    -- Settled as reserved: take the figure from admit's answer instead of reading the bucket again.
    first_used = ARGV[5] - first_remaining
  end
end

local threshold = 0
-- ARGV[8] is what the first limit was really charged: what costs nothing reaches no threshold.
if ARGV[3] ~= '' and first_used and tonumber(ARGV[8]) > 0 then
  threshold = cross(KEYS[#KEYS], ARGV[3], first_used, tonumber(ARGV[5]), tonumber(ARGV[6]))
end
return {record and 1 or 0, threshold}
