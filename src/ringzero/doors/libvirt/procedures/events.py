"""Procedures of events: how a client asks for them, and what it is sent.

See `ringzero.doors.libvirt.procedures.notation`.
"""

EVENTS = """
 105 CONNECT_DOMAIN_EVENT_REGISTER () -> (cb_registered: int)
 106 CONNECT_DOMAIN_EVENT_DEREGISTER () -> (cb_registered: int)
 107 DOMAIN_EVENT_LIFECYCLE (domain: domain, event: int, detail: int) event
 167 CONNECT_DOMAIN_EVENT_REGISTER_ANY (event_id: int)
 168 CONNECT_DOMAIN_EVENT_DEREGISTER_ANY (event_id: int)
 169 DOMAIN_EVENT_REBOOT (domain: domain) event
 170 DOMAIN_EVENT_RTC_CHANGE (domain: domain, offset: hyper) event
 171 DOMAIN_EVENT_WATCHDOG (domain: domain, action: int) event
 172 DOMAIN_EVENT_IO_ERROR (domain: domain, src_path: string, dev_alias: string, action: int)
     event
 173 DOMAIN_EVENT_GRAPHICS (domain: domain, phase: int, local: graphics_address,
     remote: graphics_address, auth_scheme: string, subject: graphics_identity[IDENTITIES]) event
 195 DOMAIN_EVENT_IO_ERROR_REASON (domain: domain, src_path: string, dev_alias: string,
     action: int, reason: string) event
 224 DOMAIN_EVENT_CONTROL_ERROR (domain: domain) event
 241 DOMAIN_EVENT_BLOCK_JOB (domain: domain, path: string, type: int, status: int) event
 248 DOMAIN_EVENT_DISK_CHANGE (domain: domain, old_src_path: string?, new_src_path: string?,
     dev_alias: string, reason: int) event
 268 DOMAIN_EVENT_TRAY_CHANGE (domain: domain, dev_alias: string, reason: int) event
 269 DOMAIN_EVENT_PMWAKEUP (domain: domain) event
 270 DOMAIN_EVENT_PMSUSPEND (domain: domain) event
 276 DOMAIN_EVENT_BALLOON_CHANGE (domain: domain, actual: uhyper) event
 292 DOMAIN_EVENT_PMSUSPEND_DISK (domain: domain) event
 311 DOMAIN_EVENT_DEVICE_REMOVED (domain: domain, dev_alias: string) event
 313 CONNECT_NETWORK_EVENT_REGISTER_ANY (event_id: int, network: network?) -> (callback_id: int)
 314 CONNECT_NETWORK_EVENT_DEREGISTER_ANY (callback_id: int)
 315 NETWORK_EVENT_LIFECYCLE (callback_id: int, network: network, event: int, detail: int) event
 316 CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY (event_id: int, domain: domain?)
     -> (callback_id: int)
 317 CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY (callback_id: int)
 318 DOMAIN_EVENT_CALLBACK_LIFECYCLE (callback_id: int, domain: domain, event: int, detail: int)
     event
 319 DOMAIN_EVENT_CALLBACK_REBOOT (callback_id: int, domain: domain) event
 320 DOMAIN_EVENT_CALLBACK_RTC_CHANGE (callback_id: int, domain: domain, offset: hyper) event
 321 DOMAIN_EVENT_CALLBACK_WATCHDOG (callback_id: int, domain: domain, action: int) event
 322 DOMAIN_EVENT_CALLBACK_IO_ERROR (callback_id: int, domain: domain, src_path: string,
     dev_alias: string, action: int) event
 323 DOMAIN_EVENT_CALLBACK_GRAPHICS (callback_id: int, domain: domain, phase: int,
     local: graphics_address, remote: graphics_address, auth_scheme: string,
     subject: graphics_identity[IDENTITIES]) event
 324 DOMAIN_EVENT_CALLBACK_IO_ERROR_REASON (callback_id: int, domain: domain, src_path: string,
     dev_alias: string, action: int, reason: string) event
 325 DOMAIN_EVENT_CALLBACK_CONTROL_ERROR (callback_id: int, domain: domain) event
 326 DOMAIN_EVENT_CALLBACK_BLOCK_JOB (callback_id: int, domain: domain, path: string, type: int,
     status: int) event
 327 DOMAIN_EVENT_CALLBACK_DISK_CHANGE (callback_id: int, domain: domain, old_src_path: string?,
     new_src_path: string?, dev_alias: string, reason: int) event
 328 DOMAIN_EVENT_CALLBACK_TRAY_CHANGE (callback_id: int, domain: domain, dev_alias: string,
     reason: int) event
 329 DOMAIN_EVENT_CALLBACK_PMWAKEUP (callback_id: int, reason: int, domain: domain) event
 330 DOMAIN_EVENT_CALLBACK_PMSUSPEND (callback_id: int, reason: int, domain: domain) event
 331 DOMAIN_EVENT_CALLBACK_BALLOON_CHANGE (callback_id: int, domain: domain, actual: uhyper) event
 332 DOMAIN_EVENT_CALLBACK_PMSUSPEND_DISK (callback_id: int, reason: int, domain: domain) event
 333 DOMAIN_EVENT_CALLBACK_DEVICE_REMOVED (callback_id: int, domain: domain, dev_alias: string)
     event
 339 DOMAIN_EVENT_BLOCK_JOB_2 (callback_id: int, domain: domain, dst: string, type: int,
     status: int) event
 346 DOMAIN_EVENT_CALLBACK_TUNABLE (callback_id: int, domain: domain, params: parameter[FACTS])
     event
 348 DOMAIN_EVENT_CALLBACK_AGENT_LIFECYCLE (callback_id: int, domain: domain, state: int,
     reason: int) event
 354 DOMAIN_EVENT_CALLBACK_DEVICE_ADDED (callback_id: int, domain: domain, dev_alias: string)
     event
 359 DOMAIN_EVENT_CALLBACK_MIGRATION_ITERATION (callback_id: int, domain: domain, iteration: int)
     event
 362 CONNECT_EVENT_CONNECTION_CLOSED (reason: int) event
 363 DOMAIN_EVENT_CALLBACK_JOB_COMPLETED (callback_id: int, domain: domain,
     params: parameter[PARAMETERS]) event
 367 DOMAIN_EVENT_CALLBACK_DEVICE_REMOVAL_FAILED (callback_id: int, domain: domain,
     dev_alias: string) event
 368 CONNECT_STORAGE_POOL_EVENT_REGISTER_ANY (event_id: int, pool: pool?) -> (callback_id: int)
 369 CONNECT_STORAGE_POOL_EVENT_DEREGISTER_ANY (callback_id: int)
 370 STORAGE_POOL_EVENT_LIFECYCLE (callback_id: int, pool: pool, event: int, detail: int) event
 373 STORAGE_POOL_EVENT_REFRESH (callback_id: int, pool: pool) event
 374 CONNECT_NODE_DEVICE_EVENT_REGISTER_ANY (event_id: int, dev: node_device?)
     -> (callback_id: int)
 375 CONNECT_NODE_DEVICE_EVENT_DEREGISTER_ANY (callback_id: int)
 376 NODE_DEVICE_EVENT_LIFECYCLE (callback_id: int, dev: node_device, event: int, detail: int)
     event
 377 NODE_DEVICE_EVENT_UPDATE (callback_id: int, dev: node_device) event
 379 DOMAIN_EVENT_CALLBACK_METADATA_CHANGE (callback_id: int, domain: domain, type: int,
     nsuri: string?) event
 380 CONNECT_SECRET_EVENT_REGISTER_ANY (event_id: int, secret: secret?) -> (callback_id: int)
 381 CONNECT_SECRET_EVENT_DEREGISTER_ANY (callback_id: int)
 382 SECRET_EVENT_LIFECYCLE (callback_id: int, secret: secret, event: int, detail: int) event
 383 SECRET_EVENT_VALUE_CHANGED (callback_id: int, secret: secret) event
 385 DOMAIN_EVENT_BLOCK_THRESHOLD (callback_id: int, domain: domain, dev: string, path: string?,
     threshold: uhyper, excess: uhyper) event
 423 DOMAIN_EVENT_MEMORY_FAILURE (callback_id: int, domain: domain, recipient: int, action: int,
     flags: uint) event
 438 DOMAIN_EVENT_MEMORY_DEVICE_SIZE_CHANGE (callback_id: int, domain: domain, alias: string,
     size: uhyper) event
"""
