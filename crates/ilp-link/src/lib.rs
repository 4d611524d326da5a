//! BTP over WebSocket, as server and as client.
