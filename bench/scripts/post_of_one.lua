wrk.method = "POST"
wrk.body = '{"x": [[1.0,2.0,3.0,4.0]]}'
wrk.headers["Content-Type"] = "application/json"
