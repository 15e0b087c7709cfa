-- 10 KB of text as JSON.
local text = string.rep("abcdefghijklmnopqrstuvwxyz", 385):sub(1, 10000)
wrk.method = "POST"
wrk.body = '{"text": "' .. text .. '"}'
wrk.headers["Content-Type"] = "application/json"
