//! From the first label of the Host header to a pod: HTTP/1.1 and WebSocket.
