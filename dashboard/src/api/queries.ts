/** What is asked of the daemon, each under one key. */
import { queryOptions } from '@tanstack/react-query';
import { api, value } from './client';

/** Keys of the cache; a prefix stands for all keys that begin with it. */
export const keys = {
  vms: ['vms'] as const,
  vm: (vm: string) => ['vms', vm] as const,
  snapshots: (vm: string) => ['vms', vm, 'snapshots'] as const,
  images: ['images'] as const,
  operations: ['operations'] as const,
  info: ['info'] as const,
  events: ['events'] as const,
  alerts: ['alerts'] as const,
  benchmarks: ['benchmarks'] as const,
};

export const vmsQuery = queryOptions({
  queryKey: keys.vms,
  queryFn: async () => (await value(api.GET('/v1/vms'))).items,
  staleTime: 30_000,
  // What no event tells, such as another name.
  refetchInterval: 30_000,
});

export const vmQuery = (vm: string) =>
  queryOptions({
    queryKey: keys.vm(vm),
    queryFn: () => value(api.GET('/v1/vms/{vm}', { params: { path: { vm } } })),
    staleTime: 30_000,
  });

export const snapshotsQuery = (vm: string) =>
  queryOptions({
    queryKey: keys.snapshots(vm),
    queryFn: async () => (await value(api.GET('/v1/vms/{vm}/snapshots', { params: { path: { vm } } }))).items,
  });

export const imagesQuery = queryOptions({
  queryKey: keys.images,
  queryFn: async () => (await value(api.GET('/v1/images'))).items,
});

export const operationsQuery = queryOptions({
  queryKey: keys.operations,
  queryFn: async () => (await value(api.GET('/v1/operations', { params: { query: { limit: 50 } } }))).items,
  // Progress is no event: while something runs, it is asked for.
  refetchInterval: (query) => (query.state.data?.some((one) => one.state === 'running') ? 700 : 30_000),
});

export const infoQuery = queryOptions({
  queryKey: keys.info,
  queryFn: () => value(api.GET('/v1/info')),
  refetchInterval: 5_000,
});

export const alertsQuery = queryOptions({
  queryKey: keys.alerts,
  queryFn: async () => (await value(api.GET('/v1/alerts', { params: { query: { limit: 500 } } }))).items,
  // Events tell when one fires or is over; what it measures meanwhile is asked for.
  refetchInterval: 30_000,
});

export const benchmarksQuery = queryOptions({
  queryKey: keys.benchmarks,
  queryFn: async () => (await value(api.GET('/v1/benchmarks', { params: { query: { limit: 200 } } }))).items,
});

/** The daemon's log, or its audit, newest first. */
export const logQuery = (of: 'log' | 'audit') =>
  queryOptions({
    queryKey: ['records', of],
    queryFn: async () => (await value(api.GET(`/v1/${of}`, { params: { query: { limit: 1000 } } }))).items,
    // Whoever reads the audit is in it.
    refetchInterval: of === 'audit' ? 60_000 : 5_000,
  });

export const eventsQuery = queryOptions({
  queryKey: keys.events,
  queryFn: async () => (await value(api.GET('/v1/events', { params: { query: { limit: 1000 } } }))).items,
  staleTime: Number.POSITIVE_INFINITY,
});
