"""Procedures of migration of domains to other hosts.

See `ringzero.doors.libvirt.procedures.notation`.
"""

MIGRATION = """
  61 DOMAIN_MIGRATE_PREPARE (uri_in: string?, flags: uhyper, dname: string?, resource: uhyper)
     -> (cookie: opaque[BUFFER], uri_out: string?)
  62 DOMAIN_MIGRATE_PERFORM (domain: domain, cookie: opaque[BUFFER], uri: string, flags: uhyper,
     dname: string?, resource: uhyper)
  63 DOMAIN_MIGRATE_FINISH (dname: string, cookie: opaque[BUFFER], uri: string, flags: uhyper)
     -> (domain: domain)
 108 DOMAIN_MIGRATE_PREPARE2 (uri_in: string?, flags: uhyper, dname: string?, resource: uhyper,
     dom_xml: string) -> (cookie: opaque[BUFFER], uri_out: string?)
 109 DOMAIN_MIGRATE_FINISH2 (dname: string, cookie: opaque[BUFFER], uri: string, flags: uhyper,
     retcode: int) -> (domain: domain)
 148 DOMAIN_MIGRATE_PREPARE_TUNNEL (flags: uhyper, dname: string?, resource: uhyper,
     dom_xml: string) to server
 166 DOMAIN_MIGRATE_SET_MAX_DOWNTIME (domain: domain, downtime: uhyper, flags: uint)
 207 DOMAIN_MIGRATE_SET_MAX_SPEED (domain: domain, bandwidth: uhyper, flags: uint)
 213 DOMAIN_MIGRATE_BEGIN3 (domain: domain, xmlin: string?, flags: uhyper, dname: string?,
     resource: uhyper) -> (cookie_out: opaque[BUFFER], xml: string)
 214 DOMAIN_MIGRATE_PREPARE3 (cookie_in: opaque[BUFFER], uri_in: string?, flags: uhyper,
     dname: string?, resource: uhyper, dom_xml: string) -> (cookie_out: opaque[BUFFER],
     uri_out: string?)
 215 DOMAIN_MIGRATE_PREPARE_TUNNEL3 (cookie_in: opaque[BUFFER], flags: uhyper, dname: string?,
     resource: uhyper, dom_xml: string) -> (cookie_out: opaque[BUFFER]) to server
 216 DOMAIN_MIGRATE_PERFORM3 (domain: domain, xmlin: string?, cookie_in: opaque[BUFFER],
     dconnuri: string?, uri: string?, flags: uhyper, dname: string?, resource: uhyper)
     -> (cookie_out: opaque[BUFFER])
 217 DOMAIN_MIGRATE_FINISH3 (dname: string, cookie_in: opaque[BUFFER], dconnuri: string?,
     uri: string?, flags: uhyper, cancelled: int) -> (domain: domain, cookie_out: opaque[BUFFER])
 218 DOMAIN_MIGRATE_CONFIRM3 (domain: domain, cookie_in: opaque[BUFFER], flags: uhyper,
     cancelled: int)
 242 DOMAIN_MIGRATE_GET_MAX_SPEED (domain: domain, flags: uint) -> (bandwidth: uhyper)
 299 DOMAIN_MIGRATE_GET_COMPRESSION_CACHE (domain: domain, flags: uint) -> (cache_size: uhyper)
 300 DOMAIN_MIGRATE_SET_COMPRESSION_CACHE (domain: domain, cache_size: uhyper, flags: uint)
 302 DOMAIN_MIGRATE_BEGIN3_PARAMS (domain: domain, params: parameter[PARAMETERS], flags: uint)
     -> (cookie_out: opaque[BUFFER], xml: string)
 303 DOMAIN_MIGRATE_PREPARE3_PARAMS (params: parameter[PARAMETERS], cookie_in: opaque[BUFFER],
     flags: uint) -> (cookie_out: opaque[BUFFER], uri_out: string?)
 304 DOMAIN_MIGRATE_PREPARE_TUNNEL3_PARAMS (params: parameter[PARAMETERS],
     cookie_in: opaque[BUFFER], flags: uint) -> (cookie_out: opaque[BUFFER])
 305 DOMAIN_MIGRATE_PERFORM3_PARAMS (domain: domain, dconnuri: string?,
     params: parameter[PARAMETERS], cookie_in: opaque[BUFFER], flags: uint)
     -> (cookie_out: opaque[BUFFER])
 306 DOMAIN_MIGRATE_FINISH3_PARAMS (params: parameter[PARAMETERS], cookie_in: opaque[BUFFER],
     flags: uint, cancelled: int) -> (domain: domain, cookie_out: opaque[BUFFER])
 307 DOMAIN_MIGRATE_CONFIRM3_PARAMS (domain: domain, params: parameter[PARAMETERS],
     cookie_in: opaque[BUFFER], flags: uint, cancelled: int)
 364 DOMAIN_MIGRATE_START_POST_COPY (domain: domain, flags: uint)
 387 DOMAIN_MIGRATE_GET_MAX_DOWNTIME (domain: domain, flags: uint) -> (downtime: uhyper)
"""
