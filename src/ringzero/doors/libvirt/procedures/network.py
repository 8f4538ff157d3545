"""Procedures of networks and their ports.

See `ringzero.doors.libvirt.procedures.notation`.
"""

NETWORK = """
  36 CONNECT_LIST_DEFINED_NETWORKS (most: int) -> (names: string[OBJECTS])
  38 CONNECT_LIST_NETWORKS (most: int) -> (names: string[OBJECTS])
  39 NETWORK_CREATE (network: network)
  40 NETWORK_CREATE_XML (xml: string) -> (network: network)
  41 NETWORK_DEFINE_XML (xml: string) -> (network: network)
  42 NETWORK_DESTROY (network: network)
  43 NETWORK_GET_XML_DESC (network: network, flags: uint) -> (xml: string)
  44 NETWORK_GET_AUTOSTART (network: network) -> (autostart: int)
  45 NETWORK_GET_BRIDGE_NAME (network: network) -> (name: string)
  46 NETWORK_LOOKUP_BY_NAME (name: string) -> (network: network)
  47 NETWORK_LOOKUP_BY_UUID (uuid: uuid) -> (network: network)
  48 NETWORK_SET_AUTOSTART (network: network, autostart: int)
  49 NETWORK_UNDEFINE (network: network)
  50 CONNECT_NUM_OF_DEFINED_NETWORKS () -> (num: int)
  52 CONNECT_NUM_OF_NETWORKS () -> (num: int)
 152 NETWORK_IS_ACTIVE (network: network) -> (active: int)
 153 NETWORK_IS_PERSISTENT (network: network) -> (persistent: int)
 283 CONNECT_LIST_ALL_NETWORKS (need_results: int, flags: uint) -> (networks: network[OBJECTS],
     ret: uint)
 291 NETWORK_UPDATE (network: network, command: uint, section: uint, parent_index: int,
     xml: string, flags: uint)
 341 NETWORK_GET_DHCP_LEASES (network: network, mac: string?, need_results: int, flags: uint)
     -> (leases: lease[LEASES], ret: uint)
 404 NETWORK_LIST_ALL_PORTS (network: network, need_results: int, flags: uint)
     -> (ports: network_port[OBJECTS], ret: uint)
 405 NETWORK_PORT_LOOKUP_BY_UUID (network: network, uuid: uuid) -> (port: network_port)
 406 NETWORK_PORT_CREATE_XML (network: network, xml: string, flags: uint) -> (port: network_port)
 407 NETWORK_PORT_GET_PARAMETERS (port: network_port, nparams: int, flags: uint)
     -> (params: parameter[TUNABLES], nparams: int)
 408 NETWORK_PORT_SET_PARAMETERS (port: network_port, params: parameter[TUNABLES], flags: uint)
 409 NETWORK_PORT_GET_XML_DESC (port: network_port, flags: uint) -> (xml: string)
 410 NETWORK_PORT_DELETE (port: network_port, flags: uint)
 432 NETWORK_DEFINE_XML_FLAGS (xml: string, flags: uint) -> (network: network)
 437 NETWORK_CREATE_XML_FLAGS (xml: string, flags: uint) -> (network: network)
"""
