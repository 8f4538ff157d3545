// A program on firecracker-go-sdk, as its users write them: it starts the `firecracker` that it is
// given, and says what each step brought, as JSON.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	sdk "github.com/firecracker-microvm/firecracker-go-sdk"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/models"
	"github.com/sirupsen/logrus"
)

type console struct {
	mutex sync.Mutex
	said  bytes.Buffer
}

func (c *console) Write(data []byte) (int, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.said.Write(data)
}

func (c *console) await(text string) {
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		c.mutex.Lock()
		found := strings.Contains(c.said.String(), text)
		c.mutex.Unlock()
		if found {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	fail("the guest", fmt.Errorf("has not said %q: %s", text, c.said.String()))
}

func fail(what string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
}

func machine(ctx context.Context, config sdk.Config, binary string, out *console,
	options ...sdk.Opt) *sdk.Machine {
	command := sdk.VMCommandBuilder{}.WithBin(binary).WithSocketPath(config.SocketPath).
		WithStdout(out).WithStderr(os.Stderr).Build(ctx)
	logger := logrus.New()
	logger.SetOutput(os.Stderr)
	options = append(options, sdk.WithProcessRunner(command),
		sdk.WithLogger(logrus.NewEntry(logger)))
	found, err := sdk.NewMachine(ctx, config, options...)
	fail("new machine", err)
	return found
}

func main() {
	binary, kernel, initrd, args := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	disk, place := os.Args[5], os.Args[6]
	at := func(name string) string { return filepath.Join(place, name) }
	ctx := context.Background()
	out := &console{}
	config := sdk.Config{
		SocketPath:      at("go.sock"),
		KernelImagePath: kernel,
		InitrdPath:      initrd,
		KernelArgs:      args,
		LogPath:         at("go.log"),
		MetricsPath:     at("go.metrics"),
		Drives: []models.Drive{{
			DriveID: sdk.String("data"), PathOnHost: sdk.String(disk),
			IsRootDevice: sdk.Bool(false), IsReadOnly: sdk.Bool(true),
		}},
		MachineCfg: models.MachineConfiguration{
			VcpuCount: sdk.Int64(1), MemSizeMib: sdk.Int64(256), Smt: sdk.Bool(false),
			TrackDirtyPages: true,
		},
		VsockDevices:   []sdk.VsockDevice{{ID: "v", Path: at("vsock"), CID: 3}},
		ForwardSignals: []os.Signal{},
	}
	vm := machine(ctx, config, binary, out)
	vm.Handlers.FcInit = vm.Handlers.FcInit.AppendAfter(sdk.CreateMachineHandlerName,
		sdk.NewCreateBalloonHandler(8, true, 1))
	fail("start", vm.Start(ctx))
	out.await("MICROVM-UP")
	info, err := vm.DescribeInstanceInfo(ctx)
	fail("describe", err)
	version, err := vm.GetFirecrackerVersion(ctx)
	fail("version", err)
	fail("set metadata", vm.SetMetadata(ctx, map[string]string{"a": "b"}))
	fail("update metadata", vm.UpdateMetadata(ctx, map[string]string{"c": "d"}))
	var metadata map[string]string
	fail("get metadata", vm.GetMetadata(ctx, &metadata))
	fail("update drive", vm.UpdateGuestDrive(ctx, "data", disk))
	fail("update balloon", vm.UpdateBalloon(ctx, 16))
	balloon, err := vm.GetBalloonConfig(ctx)
	fail("balloon", err)
	_, err = vm.GetBalloonStats(ctx)
	fail("balloon statistics", err)
	fail("pause", vm.PauseVM(ctx))
	fail("snapshot", vm.CreateSnapshot(ctx, at("memory"), at("state")))
	fail("resume", vm.ResumeVM(ctx))
	fail("stop", vm.StopVMM())
	stopped := vm.Wait(ctx)
	os.Remove(at("vsock"))

	second := &console{}
	copied := machine(ctx, sdk.Config{SocketPath: at("copy.sock"), DisableValidation: true}, binary,
		second, sdk.WithSnapshot(at("memory"), at("state"), func(c *sdk.SnapshotConfig) {
			c.ResumeVM = true
		}))
	fail("load", copied.Start(ctx))
	loaded, err := copied.DescribeInstanceInfo(ctx)
	fail("describe the copy", err)
	fail("stop the copy", copied.StopVMM())
	copied.Wait(ctx)
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"state": *info.State, "id": *info.ID, "version": version, "metadata": metadata,
		"balloon": *balloon.AmountMib, "copy": *loaded.State,
		"signalled": stopped != nil && strings.Contains(stopped.Error(), "143"),
	})
}
