package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// pinLabel is the one label that means something here.
const pinLabel = "io.cri-containerd.pinned=pinned"

// newCtr makes the program that has the name of containerd's client.
func newCtr() *cobra.Command {
	root := &cobra.Command{Use: "ctr", Short: "Gantry's images under the name of containerd's client", Version: version}
	namespace := root.PersistentFlags().StringP("namespace", "n", "default", "must be k8s.io: there is no other")
	// A call about another namespace means other images than the kubelet's.
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if *namespace != "k8s.io" && cmd.Parent().Name() != "oci" && cmd.Name() != "info" {
			return fmt.Errorf("namespace %q, expected k8s.io", *namespace)
		}
		return nil
	}
	root.AddCommand(
		group("images", "Images", []string{"image", "i"}, newImport(), newExport(), newTag(), newList()),
		group("content", "Content", []string{"c"}, newFetch()),
		group("oci", "OCI", nil, newSpec()),
		newInfo())
	return root
}

// runGantry runs the operator's command with the process's own standard input, and returns what it printed.
func runGantry(args ...string) (string, error) {
	var stdout bytes.Buffer
	cmd := exec.Command(gantry, append([]string{"--address", address}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, &stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("gantry %s: %w", strings.Join(args, " "), err)
	}
	return stdout.String(), nil
}

// newImport makes `ctr images import`. Flags that say how containerd stores an image are accepted: images are always
// unpacked, for this platform, and known by the digest of their manifest.
func newImport() *cobra.Command {
	cmd := &cobra.Command{Use: "import FILE|-", Short: "Import an archive of images", Args: cobra.ExactArgs(1)}
	for _, name := range []string{"all-platforms", "digests", "no-unpack", "local"} {
		cmd.Flags().Bool(name, false, "accepted, without effect")
	}
	cmd.Flags().String("snapshotter", "overlayfs", "must be overlayfs: there is no other")
	labels := cmd.Flags().StringSlice("label", nil, "must be "+pinLabel)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if s := cmd.Flag("snapshotter").Value.String(); s != "overlayfs" {
			return fmt.Errorf("snapshotter %q, expected overlayfs", s)
		}
		for _, label := range *labels {
			if label != pinLabel {
				return fmt.Errorf("label %q, expected %s", label, pinLabel)
			}
		}
		out, err := runGantry("image", "import", args[0])
		if err != nil {
			return err
		}
		refs := strings.Fields(out)
		if len(*labels) > 0 && len(refs) > 0 {
			if _, err := runGantry(append([]string{"image", "pin"}, refs...)...); err != nil {
				return err
			}
		}
		for _, ref := range refs {
			fmt.Fprintln(cmd.OutOrStdout(), ref, "saved")
		}
		return nil
	}
	return cmd
}

// newExport makes `ctr images export`.
func newExport() *cobra.Command {
	cmd := &cobra.Command{
		Use: "export FILE|- REF...", Short: "Export images", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := runGantry(append([]string{"image", "export", "-o", args[0]}, args[1:]...)...)
			fmt.Fprint(cmd.OutOrStdout(), out)
			return err
		},
	}
	cmd.Flags().Bool("all-platforms", false, "accepted: only this node's platform is there")
	cmd.Flags().Bool("local", false, "accepted, without effect")
	return cmd
}

// newTag makes `ctr images tag`. Without --force a name that is taken is an error.
func newTag() *cobra.Command {
	cmd := &cobra.Command{Use: "tag REF NAME...", Short: "Give an image more names", Args: cobra.MinimumNArgs(2)}
	force := cmd.Flags().Bool("force", false, "take the name from the image that has it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		names, err := imageNames()
		if err != nil {
			return err
		}
		for _, name := range args[1:] {
			if !*force && slices.Contains(names, name) {
				return fmt.Errorf("image %q: already exists", name)
			}
			if _, err := runGantry("image", "tag", args[0], name); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return nil
	}
	return cmd
}

// newList makes `ctr images list`: names, and with -q nothing else. A filter is name==REF.
func newList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list [name==REF]", Aliases: []string{"ls"}, Short: "List images", Args: cobra.MaximumNArgs(1),
	}
	quiet := cmd.Flags().BoolP("quiet", "q", false, "names only")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		names, err := imageNames()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			want, ok := strings.CutPrefix(args[0], "name==")
			if !ok {
				return fmt.Errorf("filter %q, expected name==REF", args[0])
			}
			names = slices.DeleteFunc(names, func(name string) bool { return name != want })
		}
		if !*quiet {
			fmt.Fprintln(cmd.OutOrStdout(), "REF")
		}
		for _, name := range names {
			fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return nil
	}
	return cmd
}

// imageNames are all tags and digest references, in order.
func imageNames() ([]string, error) {
	out, err := runGantry("image", "ls", "-o", "json")
	if err != nil {
		return nil, err
	}
	var images []struct{ Tags, Digests []string }
	if err := json.Unmarshal([]byte(out), &images); err != nil {
		return nil, fmt.Errorf("read the list of images: %w", err)
	}
	var names []string
	for _, image := range images {
		names = append(append(names, image.Tags...), image.Digests...)
	}
	slices.Sort(names)
	return names, nil
}

// newFetch makes `ctr content fetch`.
func newFetch() *cobra.Command {
	cmd := &cobra.Command{Use: "fetch REF", Short: "Pull an image", Args: cobra.ExactArgs(1)}
	platform := cmd.Flags().String("platform", "linux/"+runtime.GOARCH, "must be this node's")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if own := "linux/" + runtime.GOARCH; *platform != own {
			return fmt.Errorf("platform %q, expected %s: images of other platforms are not stored", *platform, own)
		}
		out, err := runGantry("image", "pull", args[0])
		fmt.Fprint(cmd.OutOrStdout(), out)
		return err
	}
	return cmd
}

// newInfo makes `ctr info`, by which kind knows that the daemon answers.
func newInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "Ask the daemon whether it is there", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := runGantry("version")
			if err != nil {
				return errors.Join(errors.New("the daemon does not answer"), err)
			}
			server := map[string]string{}
			for line := range strings.Lines(out) {
				if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
					server[name] = strings.TrimSpace(value)
				}
			}
			return writeJSON(cmd, map[string]any{"server": server})
		},
	}
}

func writeJSON(cmd *cobra.Command, value any) error {
	encoder := json.NewEncoder(cmd.OutOrStdout())
	encoder.SetIndent("", "    ")
	return encoder.Encode(value)
}
