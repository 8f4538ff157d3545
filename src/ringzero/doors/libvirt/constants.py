"""Numbers in arguments and results: states, reasons, events, flags. Their names are libvirt's own,
without what says of which kind they are; those that no machine of ours can have are left out.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class DomainState(IntEnum):
    """virDomainState."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


class RunningReason(IntEnum):
    """virDomainRunningReason."""

    UNKNOWN = 0
    BOOTED = 1
    RESTORED = 3
    FROM_SNAPSHOT = 4
    UNPAUSED = 5


class PausedReason(IntEnum):
    """virDomainPausedReason."""

    UNKNOWN = 0
    USER = 1
    SAVE = 3
    IOERROR = 5
    SHUTTING_DOWN = 8
    STARTING_UP = 11


class ShutoffReason(IntEnum):
    """virDomainShutoffReason."""

    UNKNOWN = 0
    SHUTDOWN = 1
    DESTROYED = 2
    CRASHED = 3
    SAVED = 5
    FAILED = 6
    FROM_SNAPSHOT = 7
    DAEMON = 8


class DomainEvent(IntEnum):
    """What a client registers for (virDomainEventID)."""

    LIFECYCLE = 0
    REBOOT = 1
    RTC_CHANGE = 2
    WATCHDOG = 3
    IO_ERROR = 4
    GRAPHICS = 5
    IO_ERROR_REASON = 6
    CONTROL_ERROR = 7
    BLOCK_JOB = 8
    DISK_CHANGE = 9
    TRAY_CHANGE = 10
    PMWAKEUP = 11
    PMSUSPEND = 12
    BALLOON_CHANGE = 13
    PMSUSPEND_DISK = 14
    DEVICE_REMOVED = 15
    BLOCK_JOB_2 = 16
    TUNABLE = 17
    AGENT_LIFECYCLE = 18
    DEVICE_ADDED = 19
    MIGRATION_ITERATION = 20
    JOB_COMPLETED = 21
    DEVICE_REMOVAL_FAILED = 22
    METADATA_CHANGE = 23
    BLOCK_THRESHOLD = 24
    MEMORY_FAILURE = 25
    MEMORY_DEVICE_SIZE_CHANGE = 26


class Lifecycle(IntEnum):
    """What happened to a domain (virDomainEventType)."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    SHUTDOWN = 6
    PMSUSPENDED = 7
    CRASHED = 8


class StoppedDetail(IntEnum):
    """Why a domain stopped (virDomainEventStoppedDetailType)."""

    SHUTDOWN = 0
    DESTROYED = 1
    CRASHED = 2
    SAVED = 4
    FAILED = 5
    FROM_SNAPSHOT = 6


class NetworkLifecycle(IntEnum):
    """What happened to a network (virNetworkEventLifecycleType)."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    STOPPED = 3


class NetworkUpdate(IntEnum):
    """What `net-update` does with an element (virNetworkUpdateCommand)."""

    MODIFY = 1
    DELETE = 2
    ADD_LAST = 3
    ADD_FIRST = 4


class NetworkSection(IntEnum):
    """What kind of element `net-update` is of (virNetworkUpdateSection)."""

    BRIDGE = 1
    DOMAIN = 2
    IP = 3
    IP_DHCP_HOST = 4
    IP_DHCP_RANGE = 5
    FORWARD = 6
    FORWARD_INTERFACE = 7
    FORWARD_PF = 8
    PORTGROUP = 9
    DNS_HOST = 10
    DNS_TXT = 11
    DNS_SRV = 12


class PoolLifecycle(IntEnum):
    """What happened to a pool (virStoragePoolEventLifecycleType)."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    STOPPED = 3
    CREATED = 4
    DELETED = 5


class PoolState(IntEnum):
    """virStoragePoolState."""

    INACTIVE = 0
    BUILDING = 1
    RUNNING = 2
    DEGRADED = 3
    INACCESSIBLE = 4


class VolumeType(IntEnum):
    """virStorageVolType."""

    FILE = 0
    BLOCK = 1
    DIR = 2
    NETWORK = 3


class MetadataType(IntEnum):
    """virDomainMetadataType."""

    DESCRIPTION = 0
    TITLE = 1
    ELEMENT = 2


class AddressSource(IntEnum):
    """Who says which addresses a domain has (virDomainInterfaceAddressesSource)."""

    LEASE = 0
    AGENT = 1
    ARP = 2


class AddressType(IntEnum):
    """virIPAddrType."""

    IPV4 = 0
    IPV6 = 1


class GuestInfo(IntFlag):
    """What a guest is asked of itself (virDomainGuestInfoTypes)."""

    USERS = 1 << 0
    OS = 1 << 1
    TIMEZONE = 1 << 2
    HOSTNAME = 1 << 3
    FILESYSTEM = 1 << 4
    DISKS = 1 << 5
    INTERFACES = 1 << 6


class MemoryTag(IntEnum):
    """What a memory statistic counts, in KiB (virDomainMemoryStatTags)."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJOR_FAULT = 2
    MINOR_FAULT = 3
    UNUSED = 4
    AVAILABLE = 5
    ACTUAL_BALLOON = 6
    RSS = 7
    USABLE = 8
    LAST_UPDATE = 9
    DISK_CACHES = 10


class Feature(IntEnum):
    """What a client asks of the server's wire (VIR_DRV_FEATURE_*)."""

    MIGRATION_V1 = 1
    REMOTE = 2
    MIGRATION_V2 = 3
    MIGRATION_P2P = 4
    MIGRATION_V3 = 6
    FD_PASSING = 8
    TYPED_PARAM_STRING = 9
    PROGRAM_KEEPALIVE = 10
    XML_MIGRATABLE = 11
    MIGRATION_PARAMS = 13
    REMOTE_EVENT_CALLBACK = 14
    REMOTE_CLOSE_CALLBACK = 15
    NETWORK_UPDATE_HAS_CORRECT_ORDER = 16


class Affect(IntFlag):
    """What a change is of: the machine that runs, its description (virDomainModificationImpact)."""

    CURRENT = 0
    LIVE = 1
    CONFIG = 2
    # Of memory and processors: the most there may be; of processors: what the guest says.
    MAXIMUM = 4
    GUEST = 8


class XmlFlags(IntFlag):
    """virDomainXMLFlags."""

    SECURE = 1
    INACTIVE = 2
    UPDATE_CPU = 4
    MIGRATABLE = 8


class StartFlags(IntFlag):
    """virDomainCreateFlags."""

    PAUSED = 1
    AUTODESTROY = 2
    BYPASS_CACHE = 4
    FORCE_BOOT = 8
    VALIDATE = 16
    RESET_NVRAM = 32


class SaveFlags(IntFlag):
    """virDomainSaveRestoreFlags."""

    BYPASS_CACHE = 1
    RUNNING = 2
    PAUSED = 4
    RESET_NVRAM = 8


class UndefineFlags(IntFlag):
    """virDomainUndefineFlagsValues."""

    MANAGED_SAVE = 1
    SNAPSHOTS_METADATA = 2
    NVRAM = 4
    KEEP_NVRAM = 8
    CHECKPOINTS_METADATA = 16


class ListDomains(IntFlag):
    """Which domains: pairs and triples that exclude one another (virConnectListAllDomainsFlags)."""

    ACTIVE = 1 << 0
    INACTIVE = 1 << 1
    PERSISTENT = 1 << 2
    TRANSIENT = 1 << 3
    RUNNING = 1 << 4
    PAUSED = 1 << 5
    SHUTOFF = 1 << 6
    OTHER = 1 << 7
    MANAGEDSAVE = 1 << 8
    NO_MANAGEDSAVE = 1 << 9
    AUTOSTART = 1 << 10
    NO_AUTOSTART = 1 << 11
    HAS_SNAPSHOT = 1 << 12
    NO_SNAPSHOT = 1 << 13
    HAS_CHECKPOINT = 1 << 14
    NO_CHECKPOINT = 1 << 15


class ListObjects(IntFlag):
    """Which networks or pools (virConnectListAllNetworksFlags, ...StoragePoolsFlags)."""

    INACTIVE = 1 << 0
    ACTIVE = 1 << 1
    PERSISTENT = 1 << 2
    TRANSIENT = 1 << 3
    AUTOSTART = 1 << 4
    NO_AUTOSTART = 1 << 5


class Statistics(IntFlag):
    """Groups of counts that `domstats` shows (virDomainStatsTypes)."""

    STATE = 1 << 0
    CPU_TOTAL = 1 << 1
    BALLOON = 1 << 2
    VCPU = 1 << 3
    INTERFACE = 1 << 4
    BLOCK = 1 << 5
    PERF = 1 << 6
    IOTHREAD = 1 << 7
    MEMORY = 1 << 8
    DIRTYRATE = 1 << 9
    VM = 1 << 10


class SnapshotCreate(IntFlag):
    """virDomainSnapshotCreateFlags."""

    REDEFINE = 1 << 0
    CURRENT = 1 << 1
    NO_METADATA = 1 << 2
    HALT = 1 << 3
    DISK_ONLY = 1 << 4
    REUSE_EXT = 1 << 5
    QUIESCE = 1 << 6
    ATOMIC = 1 << 7
    LIVE = 1 << 8
    VALIDATE = 1 << 9


class SnapshotList(IntFlag):
    """Which snapshots of a domain, or below another one (virDomainSnapshotListFlags)."""

    ROOTS = 1 << 0
    DESCENDANTS = 1 << 0
    METADATA = 1 << 1
    LEAVES = 1 << 2
    NO_LEAVES = 1 << 3
    NO_METADATA = 1 << 4
    INACTIVE = 1 << 5
    ACTIVE = 1 << 6
    DISK_ONLY = 1 << 7
    INTERNAL = 1 << 8
    EXTERNAL = 1 << 9
    TOPOLOGICAL = 1 << 10


class SnapshotRevert(IntFlag):
    """virDomainSnapshotRevertFlags."""

    RUNNING = 1 << 0
    PAUSED = 1 << 1
    FORCE = 1 << 2
    RESET_NVRAM = 1 << 3


class SnapshotDelete(IntFlag):
    """virDomainSnapshotDeleteFlags."""

    CHILDREN = 1 << 0
    METADATA_ONLY = 1 << 1
    CHILDREN_ONLY = 1 << 2
