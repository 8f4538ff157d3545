"""Procedures of snapshots and checkpoints of domains.

See `ringzero.doors.libvirt.procedures.notation`.
"""

SNAPSHOT = """
 185 DOMAIN_SNAPSHOT_CREATE_XML (domain: domain, xml: string, flags: uint) -> (snapshot: snapshot)
 186 DOMAIN_SNAPSHOT_GET_XML_DESC (snapshot: snapshot, flags: uint) -> (xml: string)
 187 DOMAIN_SNAPSHOT_NUM (domain: domain, flags: uint) -> (num: int)
 188 DOMAIN_SNAPSHOT_LIST_NAMES (domain: domain, most: int, flags: uint)
     -> (names: string[OBJECTS])
 189 DOMAIN_SNAPSHOT_LOOKUP_BY_NAME (domain: domain, name: string, flags: uint)
     -> (snapshot: snapshot)
 190 DOMAIN_HAS_CURRENT_SNAPSHOT (domain: domain, flags: uint) -> (result: int)
 191 DOMAIN_SNAPSHOT_CURRENT (domain: domain, flags: uint) -> (snapshot: snapshot)
 192 DOMAIN_REVERT_TO_SNAPSHOT (snapshot: snapshot, flags: uint)
 193 DOMAIN_SNAPSHOT_DELETE (snapshot: snapshot, flags: uint)
 244 DOMAIN_SNAPSHOT_GET_PARENT (snapshot: snapshot, flags: uint) -> (snapshot: snapshot)
 246 DOMAIN_SNAPSHOT_NUM_CHILDREN (snapshot: snapshot, flags: uint) -> (num: int)
 247 DOMAIN_SNAPSHOT_LIST_CHILDREN_NAMES (snapshot: snapshot, most: int, flags: uint)
     -> (names: string[OBJECTS])
 271 DOMAIN_SNAPSHOT_IS_CURRENT (snapshot: snapshot, flags: uint) -> (current: int)
 272 DOMAIN_SNAPSHOT_HAS_METADATA (snapshot: snapshot, flags: uint) -> (metadata: int)
 274 DOMAIN_LIST_ALL_SNAPSHOTS (domain: domain, need_results: int, flags: uint)
     -> (snapshots: snapshot[OBJECTS], ret: int)
 275 DOMAIN_SNAPSHOT_LIST_ALL_CHILDREN (snapshot: snapshot, need_results: int, flags: uint)
     -> (snapshots: snapshot[OBJECTS], ret: int)
 411 DOMAIN_CHECKPOINT_CREATE_XML (domain: domain, xml: string, flags: uint)
     -> (checkpoint: checkpoint)
 412 DOMAIN_CHECKPOINT_GET_XML_DESC (checkpoint: checkpoint, flags: uint) -> (xml: string)
 413 DOMAIN_LIST_ALL_CHECKPOINTS (domain: domain, need_results: int, flags: uint)
     -> (checkpoints: checkpoint[OBJECTS], ret: int)
 414 DOMAIN_CHECKPOINT_LIST_ALL_CHILDREN (checkpoint: checkpoint, need_results: int, flags: uint)
     -> (checkpoints: checkpoint[OBJECTS], ret: int)
 415 DOMAIN_CHECKPOINT_LOOKUP_BY_NAME (domain: domain, name: string, flags: uint)
     -> (checkpoint: checkpoint)
 416 DOMAIN_CHECKPOINT_GET_PARENT (checkpoint: checkpoint, flags: uint) -> (parent: checkpoint)
 417 DOMAIN_CHECKPOINT_DELETE (checkpoint: checkpoint, flags: uint)
"""
