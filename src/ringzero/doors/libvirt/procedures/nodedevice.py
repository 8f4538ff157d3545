"""Procedures of devices of the host.

See `ringzero.doors.libvirt.procedures.notation`.
"""

NODE_DEVICE = """
 111 NODE_NUM_OF_DEVICES (cap: string?, flags: uint) -> (num: int)
 112 NODE_LIST_DEVICES (cap: string?, most: int, flags: uint) -> (names: string[NODE_DEVICES])
 113 NODE_DEVICE_LOOKUP_BY_NAME (name: string) -> (dev: node_device)
 114 NODE_DEVICE_GET_XML_DESC (name: string, flags: uint) -> (xml: string)
 115 NODE_DEVICE_GET_PARENT (name: string) -> (parent_name: string?)
 116 NODE_DEVICE_NUM_OF_CAPS (name: string) -> (num: int)
 117 NODE_DEVICE_LIST_CAPS (name: string, most: int) -> (names: string[NODE_DEVICES])
 118 NODE_DEVICE_DETTACH (name: string)
 119 NODE_DEVICE_RE_ATTACH (name: string)
 120 NODE_DEVICE_RESET (name: string)
 123 NODE_DEVICE_CREATE_XML (xml: string, flags: uint) -> (dev: node_device)
 124 NODE_DEVICE_DESTROY (name: string)
 285 CONNECT_LIST_ALL_NODE_DEVICES (need_results: int, flags: uint)
     -> (devices: node_device[NODE_DEVICES], ret: uint)
 297 NODE_DEVICE_LOOKUP_SCSI_HOST_BY_WWN (wwnn: string, wwpn: string, flags: uint)
     -> (dev: node_device)
 301 NODE_DEVICE_DETACH_FLAGS (name: string, driver_name: string?, flags: uint)
 428 NODE_DEVICE_DEFINE_XML (xml: string, flags: uint) -> (dev: node_device)
 429 NODE_DEVICE_UNDEFINE (name: string, flags: uint)
 430 NODE_DEVICE_CREATE (name: string, flags: uint)
 433 NODE_DEVICE_GET_AUTOSTART (name: string) -> (autostart: int)
 434 NODE_DEVICE_SET_AUTOSTART (name: string, autostart: int)
 435 NODE_DEVICE_IS_PERSISTENT (name: string) -> (persistent: int)
 436 NODE_DEVICE_IS_ACTIVE (name: string) -> (active: int)
"""
