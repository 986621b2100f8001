// Command agent runs in the guest and executes what the host posts to /run: a shell script. Output is streamed, the exit
// code is in the trailer Exit-Code. What the host puts to /file/<path> becomes an executable file. It listens on the
// emulated network only, which nothing but the host reaches.
package main

import (
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: agent ADDRESS")
	}
	if err := holdPerf(); err != nil {
		log.Print(err)
	}
	http.HandleFunc("POST /run", run)
	http.HandleFunc("PUT /file/", put)
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}

// holdPerf keeps the kernel from patching its scheduler for the first performance event of a task, and after the last: each
// run of CRIU has some. QEMU 7.2 may execute the breakpoint that stands there meanwhile when it is gone again ("Oops:
// int3" in __schedule), as it does not look whether code changes while it translates it.
func holdPerf() error {
	event := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: unix.PERF_ATTR_SIZE_VER0}
	_, err := unix.PerfEventOpen(&event, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC) // open for as long as the agent runs
	return os.NewSyscallError("perf_event_open", err)
}

// run ends the script with all that it started in its session when the host hangs up.
func run(w http.ResponseWriter, r *http.Request) {
	script, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", "Exit-Code")
	cmd := exec.CommandContext(r.Context(), "/bin/sh", "-c", string(script))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // for what it leaves in the background with our output
	out := &flusher{w: w, c: http.NewResponseController(w)}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		io.WriteString(out, err.Error()+"\n")
		w.Header().Set("Exit-Code", "127")
		return
	}
	w.Header().Set("Exit-Code", strconv.Itoa(cmd.ProcessState.ExitCode()))
}

// put writes beside the file first: one that is being executed cannot be written.
func put(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/file")
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err == nil {
		_, err = io.Copy(f, r.Body)
		err = errors.Join(err, f.Close(), os.Rename(f.Name(), path))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// flusher sends every piece of output at once.
type flusher struct {
	w io.Writer
	c *http.ResponseController
}

// Write writes and flushes.
func (f *flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, f.c.Flush()
}
