// A client of libvirt's protocol in pure Go: what programs that use go-libvirt do. It is given the
// path of a socket, and says "right" when all is as it should be.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

const domain = `<domain type="qemu"><name>g1</name><memory unit="MiB">64</memory><vcpu>1</vcpu>
<os><type arch="x86_64">hvm</type><kernel>/dev/null</kernel></os>
<devices><disk type="file"><driver type="qcow2"/><source file="%s"/>
<target dev="vda" bus="virtio"/></disk></devices></domain>`

const pool = `<pool type="dir"><name>gp</name><target><path>%s</path></target></pool>`

const volume = `<volume><name>%s</name><capacity unit="MiB">%d</capacity>
<target><format type="%s"/></target></volume>`

func check(err error) {
	if err != nil {
		log.Output(2, err.Error())
		os.Exit(1)
	}
}

func expect(right bool, found ...any) {
	if !right {
		log.Output(2, fmt.Sprintln(found...))
		os.Exit(1)
	}
}

func events(link *libvirt.Libvirt, ctx context.Context) <-chan libvirt.DomainEventLifecycleMsg {
	found, err := link.LifecycleEvents(ctx)
	check(err)
	return found
}

func storage(link *libvirt.Libvirt, folder string) libvirt.StorageVol {
	made, err := link.StoragePoolDefineXML(fmt.Sprintf(pool, folder), 0)
	check(err)
	check(link.StoragePoolBuild(made, 0))
	check(link.StoragePoolCreate(made, 0))
	raw, err := link.StorageVolCreateXML(made, fmt.Sprintf(volume, "raw", 9, "raw"), 0)
	check(err)
	// More than one packet of go-libvirt's, each of which is larger than one of libvirt's own.
	data := bytes.Repeat([]byte("0123456789abcdef"), 9<<16)
	check(link.StorageVolUpload(raw, bytes.NewReader(data), 0, uint64(len(data)), 0))
	var back bytes.Buffer
	check(link.StorageVolDownload(raw, &back, 0, 0, 0))
	expect(bytes.Equal(back.Bytes(), data), "what came back is not what was sent", back.Len())
	disk, err := link.StorageVolCreateXML(made, fmt.Sprintf(volume, "disk.qcow2", 16, "qcow2"), 0)
	check(err)
	volumes, _, err := link.StoragePoolListAllVolumes(made, 1, 0)
	check(err)
	expect(len(volumes) == 2, volumes)
	return disk
}

func main() {
	log.SetFlags(log.Lshortfile)
	link := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(os.Args[1])))
	check(link.ConnectToURI(libvirt.ConnectURI("ringzero:///session")))
	version, err := link.ConnectGetLibVersion()
	check(err)
	expect(version >= 9_000_000, version)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	happened := events(link, ctx)

	disk := storage(link, os.Args[2])
	machine, err := link.DomainDefineXML(fmt.Sprintf(domain, disk.Key))
	check(err)
	check(link.DomainCreate(machine))
	flags := libvirt.ConnectListDomainsActive | libvirt.ConnectListDomainsInactive
	all, _, err := link.ConnectListAllDomains(1, flags)
	check(err)
	expect(len(all) == 1 && all[0].Name == "g1" && all[0].ID > 0, all)
	check(link.DomainSuspend(machine))
	check(link.DomainResume(machine))
	check(link.DomainDestroy(machine))

	snapshot, err := link.DomainSnapshotCreateXML(machine,
		"<domainsnapshot><name>s1</name></domainsnapshot>", 0)
	check(err)
	there, _, err := link.DomainListAllSnapshots(machine, 1, 0)
	check(err)
	expect(len(there) == 1 && there[0].Name == "s1", there)
	check(link.DomainRevertToSnapshot(snapshot, 0))
	check(link.DomainSnapshotDelete(snapshot, 0))

	_, err = link.DomainLookupByName("nobody")
	expect(libvirt.IsNotFound(err), err)
	check(link.DomainUndefine(machine))
	var seen []string
	for deadline := time.After(20 * time.Second); !strings.HasSuffix(strings.Join(seen, " "), "1"); {
		select {
		case event := <-happened:
			seen = append(seen, fmt.Sprint(event.Event))
		case <-deadline:
			expect(false, "the domain's end is not heard of:", seen)
		}
	}
	// Defined, started, suspended, resumed, stopped, undefined; others are heard of between them.
	wanted := strings.Fields("0 2 3 4 5 1")
	for _, event := range seen {
		if len(wanted) > 0 && event == wanted[0] {
			wanted = wanted[1:]
		}
	}
	expect(len(wanted) == 0, seen)
	check(link.Disconnect())
	fmt.Println("right")
}
