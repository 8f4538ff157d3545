// A program on firecracker-go-sdk with its JailerConfig, as its users write them: the jailer that it
// is given makes a root, into which the SDK links the machine's files. It says what came of it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	sdk "github.com/firecracker-microvm/firecracker-go-sdk"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/models"
	"github.com/sirupsen/logrus"
)

func fail(what string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
}

func main() {
	jailer, binary, kernel, initrd := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	args, disk, place := os.Args[5], os.Args[6], os.Args[7]
	user, err := strconv.Atoi(os.Args[8])
	fail("user", err)
	ctx := context.Background()
	config := sdk.Config{
		SocketPath:      "api.sock",
		KernelImagePath: kernel,
		InitrdPath:      initrd,
		KernelArgs:      args,
		Seccomp:         sdk.SeccompConfig{Enabled: true},
		Drives: []models.Drive{{
			DriveID: sdk.String("data"), PathOnHost: sdk.String(disk),
			IsRootDevice: sdk.Bool(false), IsReadOnly: sdk.Bool(true),
		}},
		MachineCfg: models.MachineConfiguration{
			VcpuCount: sdk.Int64(1), MemSizeMib: sdk.Int64(256),
		},
		JailerCfg: &sdk.JailerConfig{
			UID: sdk.Int(user), GID: sdk.Int(user), ID: "go-1", NumaNode: sdk.Int(0),
			ExecFile: binary, JailerBinary: jailer, ChrootBaseDir: filepath.Join(place, "jails"),
			ChrootStrategy: sdk.NewNaiveChrootStrategy(kernel),
			Stdout:         os.Stderr, Stderr: os.Stderr,
		},
	}
	logger := logrus.New()
	logger.SetOutput(os.Stderr)
	machine, err := sdk.NewMachine(ctx, config, sdk.WithLogger(logrus.NewEntry(logger)))
	fail("new machine", err)
	fail("start", machine.Start(ctx))
	info, err := machine.DescribeInstanceInfo(ctx)
	fail("describe", err)
	pid, err := machine.PID()
	fail("pid", err)
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
	fail("root", err)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	fail("status", err)
	fail("stop", machine.StopVMM())
	machine.Wait(ctx)
	answer, _ := json.Marshal(map[string]any{
		"state": *info.State, "id": *info.ID, "root": root, "status": string(status),
	})
	fmt.Println(string(answer))
}
