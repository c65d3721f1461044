/** What all machines use, asked for every two seconds while somebody looks. */

import type { QueryClient } from '@tanstack/react-query';
import { queryOptions, useQuery, useQueryClient } from '@tanstack/react-query';
import { api, value } from '../api/client';
import { follow, type Track, type Tracks } from './rates';

const KEY = ['usage'] as const;
/** The same each time: what is shown changes only when something is known. */
const NONE: Tracks = new Map();

const usageQuery = (cache: QueryClient) =>
  queryOptions({
    queryKey: KEY,
    queryFn: async (): Promise<Tracks> => {
      const { items } = await value(api.GET('/v1/metrics'));
      return follow(cache.getQueryData<Tracks>(KEY) ?? new Map(), items);
    },
    refetchInterval: 2_000,
    gcTime: Number.POSITIVE_INFINITY,
    structuralSharing: false,
  });

export function useUsage(): Tracks {
  return useQuery(usageQuery(useQueryClient())).data ?? NONE;
}

export function useTrack(vm: string): Track | undefined {
  return useQuery({ ...usageQuery(useQueryClient()), select: (tracks) => tracks.get(vm) }).data;
}
