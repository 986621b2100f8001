// Command web stands in for the web servers of test images. It is named after the file it is run as: nginx writes its
// pid file and calls itself a master process as the real one does, httpd prints a line when it is ready. It is not a
// web server for anything else.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	pidFile = "/var/run/nginx.pid"
	// masterTitle is what process listings show of the real nginx.
	masterTitle = "nginx: master process /usr/sbin/nginx"
)

func main() {
	self, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "80"
	}
	switch filepath.Base(self) {
	case "nginx":
		becomeMaster(self)
		if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
			log.Fatal(err)
		}
	case "httpd":
		fmt.Printf("httpd: ready on port %s\n", port)
	}
	hostname, _ := os.Hostname()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s\n", r.Method, r.URL.Path)
		fmt.Fprintf(w, "%s: hello from %s\n", filepath.Base(self), hostname)
	})
	log.Fatal(http.ListenAndServe(":"+port, nil))
}

// becomeMaster executes self again under the title that process listings are searched for.
func becomeMaster(self string) {
	if strings.Contains(os.Args[0], "master process") {
		return
	}
	log.Fatal(syscall.Exec(self, []string{masterTitle}, os.Environ()))
}
