package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cri/cadvisor"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/standin"
)

const (
	// cadvisorDrain is how long an answer to cAdvisor may take when the daemon ends.
	cadvisorDrain = time.Second
	// cadvisorSettle is longer than cAdvisor takes to see that the daemon is there again.
	cadvisorSettle = 5 * time.Second
)

// cadvisorServer serves cAdvisor: on a socket of its own, or on the daemon's if that is where cAdvisor looks, as on a
// node of kind, which knows no runtime but containerd. Only standins is set then.
type cadvisorServer struct {
	server   *grpc.Server
	standins *standin.Standins
	socket   string
	made     os.FileInfo // of the socket: another program may take its name
	ownDir   bool        // the socket's directory was made for it
}

// openCadvisor serves cAdvisor if it is configured and, for "auto", if nobody else serves it. It is open before the
// kubelet can ask for anything: cAdvisor looks once, when the kubelet has reached the CRI.
func (d *daemon) openCadvisor(context.Context) error {
	serve, address := d.config.Cadvisor.Serve, d.config.Cadvisor.Address
	if serve == cadvisorOff {
		d.discardStandins()
		return nil
	}
	opened, err := d.listenForCadvisor(address)
	if err != nil {
		if serve == cadvisorOn {
			return fmt.Errorf("serve cAdvisor: %w", err)
		}
		klog.InfoS("cAdvisor is not served: without the kubelet's gate PodAndContainerStatsFromCRI its statistics of pods "+
			"are incomplete", "address", address, "reason", err)
		d.discardStandins()
		return nil
	}
	d.cadvisor = opened
	klog.InfoS("Serving cAdvisor", "address", address)
	return nil
}

func (d *daemon) standinDir() (string, error) {
	return standin.Dir("/sys/fs/cgroup", d.config.CgroupParent, d.manager.CgroupDriver() == sandbox.DriverSystemd)
}

// discardStandins removes the stand-ins of a killed daemon that served cAdvisor, as this one does not.
func (d *daemon) discardStandins() {
	if dir, err := d.standinDir(); err == nil { // where there is no such directory nobody had any
		standin.Discard(d.manager, dir)
	}
}

func (d *daemon) listenForCadvisor(address string) (*cadvisorServer, error) {
	socket, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	dir, err := d.standinDir()
	if err != nil {
		return nil, err
	}
	service := cadvisor.New(d.manager, runtimeVersion(buildVersion()))
	if address == d.config.Address {
		standins, err := standin.Open(d.manager, dir, cadvisorSettle)
		if err != nil {
			return nil, err
		}
		service.Register(d.server)
		return &cadvisorServer{standins: standins}, nil
	}
	_, missing := os.Lstat(filepath.Dir(socket))
	listener, err := listen(socket)
	if err != nil {
		return nil, err
	}
	c := &cadvisorServer{server: grpc.NewServer(d.cri.ServerOptions()...), socket: socket, ownDir: missing != nil}
	c.made, err = os.Lstat(socket)
	if err == nil {
		c.standins, err = standin.Open(d.manager, dir, cadvisorSettle)
	}
	if err != nil {
		c.removeSocket()
		_ = listener.Close()
		return nil, err
	}
	service.Register(c.server)
	go c.serve(listener)
	return c, nil
}

func (c *cadvisorServer) serve(listener net.Listener) {
	if err := c.server.Serve(listener); err != nil {
		klog.ErrorS(err, "Serving cAdvisor ended", "socket", c.socket)
	}
}

// close ends the serving and removes what was for it.
func (c *cadvisorServer) close() {
	if c.server != nil {
		c.removeSocket()
		drain(c.server, cadvisorDrain)
	}
	c.standins.Close()
}

// removeSocket removes the socket if the name is still its own: containerd takes the name without asking.
func (c *cadvisorServer) removeSocket() {
	now, err := os.Lstat(c.socket)
	if err != nil || !os.SameFile(c.made, now) {
		return
	}
	if err := os.Remove(c.socket); err != nil {
		klog.ErrorS(err, "Removing the socket failed", "socket", c.socket)
	}
	if c.ownDir {
		_ = os.Remove(filepath.Dir(c.socket)) // unless somebody else has put something there
	}
}
