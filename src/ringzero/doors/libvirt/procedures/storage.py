"""Procedures of storage pools and volumes.

See `ringzero.doors.libvirt.procedures.notation`.
"""

STORAGE = """
  71 CONNECT_NUM_OF_STORAGE_POOLS () -> (num: int)
  72 CONNECT_LIST_STORAGE_POOLS (most: int) -> (names: string[OBJECTS])
  73 CONNECT_NUM_OF_DEFINED_STORAGE_POOLS () -> (num: int)
  74 CONNECT_LIST_DEFINED_STORAGE_POOLS (most: int) -> (names: string[OBJECTS])
  75 CONNECT_FIND_STORAGE_POOL_SOURCES (type: string, src_spec: string?, flags: uint)
     -> (xml: string)
  76 STORAGE_POOL_CREATE_XML (xml: string, flags: uint) -> (pool: pool)
  77 STORAGE_POOL_DEFINE_XML (xml: string, flags: uint) -> (pool: pool)
  78 STORAGE_POOL_CREATE (pool: pool, flags: uint)
  79 STORAGE_POOL_BUILD (pool: pool, flags: uint)
  80 STORAGE_POOL_DESTROY (pool: pool)
  81 STORAGE_POOL_DELETE (pool: pool, flags: uint)
  82 STORAGE_POOL_UNDEFINE (pool: pool)
  83 STORAGE_POOL_REFRESH (pool: pool, flags: uint)
  84 STORAGE_POOL_LOOKUP_BY_NAME (name: string) -> (pool: pool)
  85 STORAGE_POOL_LOOKUP_BY_UUID (uuid: uuid) -> (pool: pool)
  86 STORAGE_POOL_LOOKUP_BY_VOLUME (volume: volume) -> (pool: pool)
  87 STORAGE_POOL_GET_INFO (pool: pool) -> (state: uchar, capacity: uhyper, allocation: uhyper,
     available: uhyper)
  88 STORAGE_POOL_GET_XML_DESC (pool: pool, flags: uint) -> (xml: string)
  89 STORAGE_POOL_GET_AUTOSTART (pool: pool) -> (autostart: int)
  90 STORAGE_POOL_SET_AUTOSTART (pool: pool, autostart: int)
  91 STORAGE_POOL_NUM_OF_VOLUMES (pool: pool) -> (num: int)
  92 STORAGE_POOL_LIST_VOLUMES (pool: pool, most: int) -> (names: string[OBJECTS])
  93 STORAGE_VOL_CREATE_XML (pool: pool, xml: string, flags: uint) -> (volume: volume)
  94 STORAGE_VOL_DELETE (volume: volume, flags: uint)
  95 STORAGE_VOL_LOOKUP_BY_NAME (pool: pool, name: string) -> (volume: volume)
  96 STORAGE_VOL_LOOKUP_BY_KEY (key: string) -> (volume: volume)
  97 STORAGE_VOL_LOOKUP_BY_PATH (path: string) -> (volume: volume)
  98 STORAGE_VOL_GET_INFO (volume: volume) -> (type: char, capacity: uhyper, allocation: uhyper)
  99 STORAGE_VOL_GET_XML_DESC (volume: volume, flags: uint) -> (xml: string)
 100 STORAGE_VOL_GET_PATH (volume: volume) -> (name: string)
 125 STORAGE_VOL_CREATE_XML_FROM (pool: pool, xml: string, clonevol: volume, flags: uint)
     -> (volume: volume)
 154 STORAGE_POOL_IS_ACTIVE (pool: pool) -> (active: int)
 155 STORAGE_POOL_IS_PERSISTENT (pool: pool) -> (persistent: int)
 165 STORAGE_VOL_WIPE (volume: volume, flags: uint)
 208 STORAGE_VOL_UPLOAD (volume: volume, offset: uhyper, length: uhyper, flags: uint) to server
 209 STORAGE_VOL_DOWNLOAD (volume: volume, offset: uhyper, length: uhyper, flags: uint) to client
 259 STORAGE_VOL_WIPE_PATTERN (volume: volume, algorithm: uint, flags: uint)
 260 STORAGE_VOL_RESIZE (volume: volume, capacity: uhyper, flags: uint)
 281 CONNECT_LIST_ALL_STORAGE_POOLS (need_results: int, flags: uint) -> (pools: pool[OBJECTS],
     ret: uint)
 282 STORAGE_POOL_LIST_ALL_VOLUMES (pool: pool, need_results: int, flags: uint)
     -> (volumes: volume[OBJECTS], ret: uint)
 378 STORAGE_VOL_GET_INFO_FLAGS (volume: volume, flags: uint) -> (type: char, capacity: uhyper,
     allocation: uhyper)
 391 STORAGE_POOL_LOOKUP_BY_TARGET_PATH (path: string) -> (pool: pool)
 403 CONNECT_GET_STORAGE_POOL_CAPABILITIES (flags: uint) -> (capabilities: string)
"""
