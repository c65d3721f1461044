/** Names for the types of the API, which `npm run generate` takes from docs/openapi.json. */
import type { components } from './schema';

type Schemas = components['schemas'];

export type Alert = Schemas['Alert'];
export type BenchmarkFigure = Schemas['BenchmarkFigure'];
export type BenchmarkRun = Schemas['BenchmarkRun'];
export type BenchmarkSuite = Schemas['BenchmarkSuite'];
export type CloneRequest = Schemas['CloneRequest'];
export type CreateVm = Schemas['CreateVm'];
export type DiskMetrics = Schemas['DiskMetrics'];
export type Event = Schemas['Event'];
export type Image = Schemas['Image'];
export type Info = Schemas['Info'];
export type Limits = Schemas['Limits'];
export type LogRecord = Schemas['LogRecord'];
export type Operation = Schemas['Operation'];
export type Problem = Schemas['Problem'];
export type ProtectRequest = Schemas['ProtectRequest'];
export type Protection = Schemas['Protection'];
export type RateLimit = Schemas['RateLimit'];
export type Sample = Schemas['Sample'];
export type Scope = Schemas['Scope'];
export type Snapshot = Schemas['Snapshot'];
export type Vm = Schemas['Vm'];
export type VmMetrics = Schemas['VmMetrics'];
export type VmState = Schemas['VmState'];
export type VmSpec = Schemas['VmSpec'];
