terraform {
  required_providers {
    libvirt = { source = "dmacvicar/libvirt" }
  }
}
provider "libvirt" {
  uri = var.uri
}
variable "uri" {}
variable "folder" {}
variable "image" {}
variable "memory" { default = 64 }
variable "vcpus" { default = 1 }
variable "running" { default = true }

resource "libvirt_network" "lab" {
  name      = "lab"
  autostart = true
  forward   = { mode = "nat" }
  domain    = { name = "lab.test" }
  bridge    = { name = "virbr9", stp = "on", delay = "0" }
  ips = [{
    address = "10.79.0.1"
    netmask = "255.255.255.0"
    dhcp = {
      ranges = [{ start = "10.79.0.10", end = "10.79.0.99" }]
      hosts  = [{ mac = "52:54:00:00:00:09", ip = "10.79.0.50", name = "web" }]
    }
  }]
}

resource "libvirt_pool" "images" {
  name   = "images"
  type   = "dir"
  target = { path = "${var.folder}/images" }
}

resource "libvirt_volume" "base" {
  name   = "base.qcow2"
  pool   = libvirt_pool.images.name
  target = { format = { type = "qcow2" } }
  create = { content = { url = "file://${var.image}" } }
}

resource "libvirt_volume" "disk" {
  name     = "disk.qcow2"
  pool     = libvirt_pool.images.name
  capacity = 134217728
  target   = { format = { type = "qcow2" } }
  backing_store = {
    path   = libvirt_volume.base.path
    format = { type = "qcow2" }
  }
}

resource "libvirt_cloudinit_disk" "seed" {
  name           = "seed"
  user_data      = "#cloud-config\nhostname: web\n"
  meta_data      = "instance-id: web-1\nlocal-hostname: web\n"
  network_config = "version: 2\nethernets: {eth0: {dhcp4: true}}\n"
}

resource "libvirt_volume" "seed" {
  name   = "seed.iso"
  pool   = libvirt_pool.images.name
  create = { content = { url = libvirt_cloudinit_disk.seed.path } }
}

resource "libvirt_domain" "web" {
  name        = "web"
  type        = "qemu"
  description = "of tofu"
  memory      = var.memory
  memory_unit = "MiB"
  vcpu        = var.vcpus
  running     = var.running
  autostart   = true
  os = {
    type         = "hvm"
    type_arch    = "x86_64"
    type_machine = "q35"
    kernel       = "/dev/null"
    kernel_args  = "quiet"
    boot_devices = [{ dev = "hd" }]
  }
  features = { acpi = true, apic = {} }
  cpu      = { mode = "host-passthrough" }
  clock    = { offset = "utc", timer = [{ name = "rtc", tick_policy = "catchup" }] }
  devices = {
    disks = [
      {
        source = { volume = { pool = libvirt_volume.disk.pool, volume = libvirt_volume.disk.name } }
        target = { dev = "vda", bus = "virtio" }
        driver = { type = "qcow2", cache = "none", discard = "unmap" }
      },
      {
        device = "cdrom"
        source = { file = { file = libvirt_volume.seed.path } }
        target = { dev = "sda", bus = "sata" }
      },
    ]
    interfaces = [{
      source = { network = { network = libvirt_network.lab.name } }
      mac    = { address = "52:54:00:00:00:09" }
      model  = { type = "virtio" }
    }]
    serials     = [{ target = { port = 0 } }]
    consoles    = [{ target = { type = "serial", port = 0 } }]
    channels    = [{ source = { unix = {} }, target = { virt_io = { name = "org.qemu.guest_agent.0" } } }]
    graphics    = [{ vnc = { auto_port = true, listen = "127.0.0.1" } }]
    videos      = [{ model = { type = "virtio" } }]
    rngs        = [{ model = "virtio", backend = { random = "/dev/urandom" } }]
    filesystems = [{
      accessmode = "mapped"
      source     = { mount = { dir = var.folder } }
      target     = { dir = "host" }
    }]
  }
}
