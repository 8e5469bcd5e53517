"""HTTP and RPC: routes, the server API, health, pages. Never touches a socket."""
