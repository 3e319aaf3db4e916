package wasi

import "github.com/tetratelabs/wazero/experimental/sys"

// errno is WASI's error number.
type errno uint32

// Those that are used here, numbered by WASI.
const (
	ok           errno = 0
	eACCES       errno = 2
	eAGAIN       errno = 6
	eBADF        errno = 8
	eBUSY        errno = 10
	eEXIST       errno = 20
	eFAULT       errno = 21
	eINTR        errno = 27
	eINVAL       errno = 28
	eIO          errno = 29
	eISDIR       errno = 31
	eLOOP        errno = 32
	eMFILE       errno = 33
	eNAMETOOLONG errno = 37
	eNOENT       errno = 44
	eNOSYS       errno = 52
	eNOTDIR      errno = 54
	eNOTEMPTY    errno = 55
	eNOTSOCK     errno = 57
	eNOTSUP      errno = 58
	ePERM        errno = 63
	ePIPE        errno = 64
	eRANGE       errno = 68
	eROFS        errno = 69
	eSPIPE       errno = 70
	eXDEV        errno = 75
)

// fromSys translates a file system's error.
func fromSys(e sys.Errno) errno {
	if e == 0 {
		return ok
	}
	if int(e) < len(sysErrnos) && sysErrnos[e] != ok {
		return sysErrnos[e]
	}
	return eIO
}

var sysErrnos = [...]errno{
	sys.EACCES: eACCES, sys.EAGAIN: eAGAIN, sys.EBADF: eBADF, sys.EEXIST: eEXIST, sys.EFAULT: eFAULT,
	sys.EINTR: eINTR, sys.EINVAL: eINVAL, sys.EIO: eIO, sys.EISDIR: eISDIR, sys.ELOOP: eLOOP,
	sys.ENAMETOOLONG: eNAMETOOLONG, sys.ENOENT: eNOENT, sys.ENOSYS: eNOSYS, sys.ENOTDIR: eNOTDIR,
	sys.ERANGE: eRANGE, sys.ENOTEMPTY: eNOTEMPTY, sys.ENOTSOCK: eNOTSOCK, sys.ENOTSUP: eNOTSUP,
	sys.EPERM: ePERM, sys.EROFS: eROFS,
}
