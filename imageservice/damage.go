package imageservice

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"k8s.io/klog/v2"
)

const damagedPrefix = "damaged-"

// replaceDamaged moves the store aside when one of its databases cannot be read from end to end. The layers stay until
// the next boot, because running containers may have them mounted; the blobs, which nobody has open, go at once.
func replaceDamaged(root string) error {
	boot := bootID()
	removeDamaged(root, boot)
	damage := missing(root)
	for _, name := range []string{"meta.db", filepath.Join("snapshots", "metadata.db")} {
		path := filepath.Join(root, name)
		err := probe(path)
		if err == nil {
			continue
		}
		if !isDamage(err) {
			return fmt.Errorf("read %s: %w", path, err)
		}
		damage = errors.Join(damage, fmt.Errorf("read %s: %w", path, err))
	}
	if damage == nil {
		return nil
	}
	aside := filepath.Join(root, fmt.Sprintf("%s%s-%d", damagedPrefix, boot, time.Now().UnixNano()))
	klog.ErrorS(damage, "IMAGE STORE IS DAMAGED. Starting with an empty one: images have to be pulled again",
		"root", root, "movedTo", aside)
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"meta.db", "snapshots", "content"} {
		err := os.Rename(filepath.Join(root, name), filepath.Join(aside, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	go os.RemoveAll(filepath.Join(aside, "content"))
	return nil
}

// missing finds layers without the database that numbers them: new layers would collide with them.
func missing(root string) error {
	layers, err := filepath.Glob(filepath.Join(root, "snapshots", "snapshots", "*"))
	if err != nil || len(layers) == 0 {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "snapshots", "metadata.db")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%d layers and no database: %w", len(layers), errDamaged)
	}
	return nil
}

// removeDamaged frees what was moved aside before the last boot.
func removeDamaged(root, boot string) {
	old, _ := filepath.Glob(filepath.Join(root, damagedPrefix+"*"))
	for _, dir := range old {
		if !strings.HasPrefix(filepath.Base(dir), damagedPrefix+boot) {
			go os.RemoveAll(dir)
		}
	}
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
}

// errDamaged is what probe found by panicking: bbolt trusts its pages.
var errDamaged = errors.New("database is damaged")

// isDamage tells a damaged file from one that could not be opened at all, which is not a reason to give it up.
func isDamage(err error) bool {
	var errno syscall.Errno
	return !errors.As(err, &errno) && !errdefs.IsFailedPrecondition(err)
}

// probe reads every key of a bolt database. A file that does not exist is sound.
func probe(path string) (err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	// A page beyond the end of a truncated file is a fault in the memory map, which would end the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, ReadOnly: true, PreLoadFreelist: true})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("open in another process: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	defer db.Close()
	tx, err := db.Begin(false)
	if err != nil {
		return err
	}
	// Not db.View: after a panic it would hang in Close, which waits for open transactions.
	defer tx.Rollback()
	return tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error { return readBucket(bucket) })
}

func readBucket(bucket *bolt.Bucket) error {
	var sum byte
	err := bucket.ForEach(func(key, value []byte) error {
		if value == nil {
			inner := bucket.Bucket(key)
			if inner == nil {
				return errDamaged
			}
			return readBucket(inner)
		}
		for _, b := range value {
			sum ^= b // reading is the point
		}
		return nil
	})
	_ = sum
	return err
}
