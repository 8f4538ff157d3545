"""HTTP/1.1 (RFC 9112) and WebSocket (RFC 6455) on asyncio; the grammar is h11's, wsproto's."""
