terraform {
  required_providers {
    libvirt = { source = "dmacvicar/libvirt" }
  }
}

variable "uri" {}
variable "folder" {}
variable "image" {}
variable "memory" { default = 64 }
variable "vcpus" { default = 1 }
variable "running" { default = true }

provider "libvirt" {
  uri = var.uri
}

resource "libvirt_network" "lab" {
  name      = "lab"
  mode      = "nat"
  domain    = "lab.test"
  bridge    = "virbr8"
  autostart = true
  addresses = ["10.79.0.0/24"]
  dhcp { enabled = true }
  dns {
    enabled = true
    hosts {
      hostname = "registry"
      ip       = "10.79.0.9"
    }
  }
}

resource "libvirt_pool" "images" {
  name = "images"
  type = "dir"
  target { path = "${var.folder}/images" }
}

resource "libvirt_volume" "base" {
  name   = "base.qcow2"
  pool   = libvirt_pool.images.name
  source = var.image
  format = "qcow2"
}

resource "libvirt_volume" "disk" {
  name           = "disk.qcow2"
  pool           = libvirt_pool.images.name
  base_volume_id = libvirt_volume.base.id
  size           = 134217728
}

resource "libvirt_cloudinit_disk" "seed" {
  name           = "seed.iso"
  pool           = libvirt_pool.images.name
  user_data      = "#cloud-config\nhostname: web\n"
  meta_data      = "instance-id: web-1\nlocal-hostname: web\n"
  network_config = "version: 2\nethernets: {eth0: {dhcp4: true}}\n"
}

resource "libvirt_domain" "web" {
  name        = "web"
  type        = "qemu"
  description = "of tofu"
  memory      = var.memory
  vcpu        = var.vcpus
  running     = var.running
  autostart   = true
  kernel      = "/dev/null"
  cmdline     = [{ quiet = "1" }]
  cloudinit   = libvirt_cloudinit_disk.seed.id
  cpu { mode = "host-passthrough" }
  disk { volume_id = libvirt_volume.disk.id }
  network_interface {
    network_id = libvirt_network.lab.id
  }
  console {
    type        = "pty"
    target_port = "0"
    target_type = "serial"
  }
  graphics {
    type        = "vnc"
    listen_type = "address"
    autoport    = true
  }
  filesystem {
    source   = var.folder
    target   = "host"
    readonly = false
  }
}
