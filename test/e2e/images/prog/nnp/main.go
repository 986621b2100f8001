// Command nnp prints its effective uid. Installed setuid root it shows whether no_new_privs is in force. It is part of a
// test image only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
