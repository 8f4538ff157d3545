"""Procedures of the connection itself and the host: login, features, capabilities, counts.

See `ringzero.doors.libvirt.procedures.notation`.
"""

CONNECT = """
   1 CONNECT_OPEN (name: string?, flags: uint)
   2 CONNECT_CLOSE ()
   3 CONNECT_GET_TYPE () -> (type: string)
   4 CONNECT_GET_VERSION () -> (version: uhyper)
   5 CONNECT_GET_MAX_VCPUS (type: string?) -> (max_vcpus: int)
   6 NODE_GET_INFO () -> (model: char[=32], memory: uhyper, cpus: int, mhz: int, nodes: int,
     sockets: int, cores: int, threads: int)
   7 CONNECT_GET_CAPABILITIES () -> (capabilities: string)
  21 CONNECT_LIST_DEFINED_DOMAINS (most: int) -> (names: string[OBJECTS])
  25 CONNECT_NUM_OF_DEFINED_DOMAINS () -> (num: int)
  37 CONNECT_LIST_DOMAINS (most: int) -> (ids: int[OBJECTS])
  51 CONNECT_NUM_OF_DOMAINS () -> (num: int)
  59 CONNECT_GET_HOSTNAME () -> (hostname: string)
  60 CONNECT_SUPPORTS_FEATURE (feature: int) -> (supported: int)
  66 AUTH_LIST () -> (types: int[IDENTITIES])
  67 AUTH_SASL_INIT () -> (mechlist: string)
  68 AUTH_SASL_START (mech: string, nil: int, data: char[SASL]) -> (complete: int, nil: int,
     data: char[SASL])
  69 AUTH_SASL_STEP (nil: int, data: char[SASL]) -> (complete: int, nil: int, data: char[SASL])
  70 AUTH_POLKIT () -> (complete: int)
 101 NODE_GET_CELLS_FREE_MEMORY (start_cell: int, most: int) -> (cells: uhyper[CELLS])
 102 NODE_GET_FREE_MEMORY () -> (free: uhyper)
 110 CONNECT_GET_URI () -> (uri: string)
 122 NODE_GET_SECURITY_MODEL () -> (model: char[MODEL], doi: char[MODEL])
 135 CONNECT_DOMAIN_XML_FROM_NATIVE (native_format: string, native_config: string, flags: uint)
     -> (domain_xml: string)
 136 CONNECT_DOMAIN_XML_TO_NATIVE (native_format: string, domain_xml: string, flags: uint)
     -> (native_config: string)
 149 CONNECT_IS_SECURE () -> (secure: int)
 157 CONNECT_GET_LIB_VERSION () -> (version: uhyper)
 158 CONNECT_COMPARE_CPU (xml: string, flags: uint) -> (result: int)
 162 CONNECT_BASELINE_CPU (xml_cpus: string[BASELINES], flags: uint) -> (cpu: string)
 203 CONNECT_GET_SYSINFO (flags: uint) -> (sysinfo: string)
 227 NODE_GET_CPU_STATS (cpu_num: int, nparams: int, flags: uint)
     -> (params: node_statistic[TUNABLES], nparams: int)
 228 NODE_GET_MEMORY_STATS (nparams: int, cell_num: int, flags: uint)
     -> (params: node_statistic[TUNABLES], nparams: int)
 250 NODE_SUSPEND_FOR_DURATION (target: uint, duration: uhyper, flags: uint)
 273 CONNECT_LIST_ALL_DOMAINS (need_results: int, flags: uint) -> (domains: domain[OBJECTS],
     ret: uint)
 288 NODE_SET_MEMORY_PARAMETERS (params: parameter[PARAMETERS], flags: uint)
 289 NODE_GET_MEMORY_PARAMETERS (nparams: int, flags: uint) -> (params: parameter[PARAMETERS],
     nparams: int)
 293 NODE_GET_CPU_MAP (need_map: int, need_online: int, flags: uint) -> (cpumap: opaque[CPUMAP],
     online: uint, ret: int)
 312 CONNECT_GET_CPU_MODEL_NAMES (arch: string, need_results: int, flags: uint)
     -> (models: string[CPU_MODELS], ret: int)
 340 NODE_GET_FREE_PAGES (pages: uint[CELLS], start_cell: int, cell_count: uint, flags: uint)
     -> (counts: uhyper[CELLS])
 342 CONNECT_GET_DOMAIN_CAPABILITIES (emulatorbin: string?, arch: string?, machine: string?,
     virttype: string?, flags: uint) -> (capabilities: string)
 344 CONNECT_GET_ALL_DOMAIN_STATS (domains: domain[OBJECTS], stats: uint, flags: uint)
     -> (ret_stats: domain_statistics[OBJECTS])
 347 NODE_ALLOC_PAGES (page_sizes: uint[CELLS], page_counts: uhyper[CELLS], start_cell: int,
     cell_count: uint, flags: uint) -> (ret: int)
 360 CONNECT_REGISTER_CLOSE_CALLBACK ()
 361 CONNECT_UNREGISTER_CLOSE_CALLBACK ()
 393 CONNECT_COMPARE_HYPERVISOR_CPU (emulator: string?, arch: string?, machine: string?,
     virttype: string?, xml_cpu: string, flags: uint) -> (result: int)
 394 CONNECT_BASELINE_HYPERVISOR_CPU (emulator: string?, arch: string?, machine: string?,
     virttype: string?, xml_cpus: string[BASELINES], flags: uint) -> (cpu: string)
 395 NODE_GET_SEV_INFO (nparams: int, flags: uint) -> (params: parameter[PARAMETERS],
     nparams: int)
 419 CONNECT_SET_IDENTITY (params: parameter[IDENTITIES], flags: uint)
"""
