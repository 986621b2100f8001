package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cri/operator"
)

// chunkSize is how much of an archive goes in one message, in bytes.
const chunkSize = 256 << 10

// newImportCommand makes `gantry image import`.
func newImportCommand(c *connector) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE|-",
		Short: "Import the images of an archive (OCI layout or docker-archive)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				source = f
			}
			return c.with(cmd.Context(), func(d *daemonClient) error {
				refs, err := d.importImages(cmd.Context(), source)
				for _, ref := range refs {
					fmt.Fprintln(cmd.OutOrStdout(), ref)
				}
				return err
			})
		},
	}
}

// importImages sends an archive and returns the references of what was in it.
func (d *daemonClient) importImages(ctx context.Context, r io.Reader) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a file that cannot be read to its end must not look like one that ends
	stream, err := d.operator.Import(ctx)
	if err != nil {
		return nil, err
	}
	for {
		data := make([]byte, chunkSize)
		n, readErr := io.ReadFull(r, data)
		if n > 0 {
			// io.EOF says that the daemon answered already, with an error most likely: CloseAndRecv tells.
			if err := stream.Send(&operator.ImportChunk{Data: data[:n]}); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, err
			}
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return nil, fmt.Errorf("read archive: %w", readErr)
		}
	}
	reply, err := stream.CloseAndRecv()
	return reply.GetRefs(), err
}

// newExportCommand makes `gantry image export`.
func newExportCommand(c *connector) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export -o FILE|- REF...",
		Short: "Export images to an OCI archive",
		Args:  cobra.MinimumNArgs(1),
	}
	output := cmd.Flags().StringP("output", "o", "", "file to write, - for the standard output")
	_ = cmd.MarkFlagRequired("output") // fails only for a flag that does not exist
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		return c.with(cmd.Context(), func(d *daemonClient) error {
			if *output == "-" {
				return d.exportImages(cmd.Context(), refs, cmd.OutOrStdout())
			}
			return writeWhole(*output, func(w io.Writer) error {
				return d.exportImages(cmd.Context(), refs, w)
			})
		})
	}
	return cmd
}

// exportImages writes the archive that the daemon sends.
func (d *daemonClient) exportImages(ctx context.Context, refs []string, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := d.operator.Export(ctx, &operator.ExportRequest{Refs: refs})
	if err != nil {
		return err
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(chunk.GetData()); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
}

// writeWhole writes a file that appears under its name only when it is complete.
func writeWhole(name string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("write %s: there is something of that name that is no file", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
